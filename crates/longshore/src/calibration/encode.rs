//! Token ids of a sample.

use super::Pieces;
use super::record::{Document, Record};
use longshore_infer::chat::Conversation;
use longshore_infer::tokenizer::{Tokenizer, TokenizerError};
use serde_json::{Map, Value};

/// Makes ids of documents.
pub(super) struct Encoder<'a> {
    pieces: &'a Pieces<'a>,
    /// Whether documents are lines of JSON.
    json: bool,
    /// Whether they are the bundled text, which any model must be able to take.
    bundled: bool,
    /// Tokens of a sample at most; `None` for documents that are joined.
    limit: Option<usize>,
}

/// The ids of one sample.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// Whether its end was cut off.
    pub(super) truncated: bool,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(pieces: &'a Pieces<'a>, json: bool, bundled: bool, limit: Option<usize>) -> Self {
        Self { pieces, json, bundled, limit }
    }

    /// The ids of a document, `None` for an empty text, or what is wrong with it.
    pub(super) fn encode(&self, document: &Document) -> Result<Option<Encoded>, String> {
        if !self.json {
            return self.text(&document.text, false);
        }
        match Record::of(&document.text)? {
            Record::Ids(ids) => self.ids(ids).map(Some),
            Record::Text(text) => self.text(&text, false),
            Record::Chat(conversation) => self.text(&self.conversation(&conversation)?, true),
        }
    }

    fn ids(&self, mut ids: Vec<u32>) -> Result<Encoded, String> {
        let vocab = self.pieces.vocab;
        if let Some(at) = ids.iter().position(|&id| u64::from(id) >= vocab) {
            return Err(format!(
                "`input_ids`, item {at}: expected an id below {vocab}, the model's vocabulary, found {}",
                ids[at]
            ));
        }
        let truncated = self.limit.is_some_and(|limit| ids.len() > limit);
        ids.truncate(self.limit.unwrap_or(usize::MAX));
        Ok(Encoded { ids, truncated })
    }

    fn text(&self, text: &str, rendered: bool) -> Result<Option<Encoded>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let folder = self.pieces.folder;
        let tokenizer = self.pieces.tokenizer.ok_or_else(|| {
            format!(
                "text, which only a tokenizer makes ids of, and there is no `tokenizer.json` in `{}`",
                folder.display()
            )
        })?;
        let encoded = match self.limit {
            Some(limit) => with_special_tokens(tokenizer, text, limit, rendered),
            None => tokenizer.encode(text, false).map(|ids| Encoded { ids, truncated: false }),
        };
        let encoded = encoded.map_err(|error| error.to_string())?;
        if encoded.ids.is_empty() { Err("the text has no tokens".to_owned()) } else { Ok(Some(encoded)) }
    }

    /// All turns in the checkpoint's chat template, with nothing after the last.
    fn conversation(&self, conversation: &Conversation) -> Result<String, String> {
        let template = match &self.pieces.template {
            Ok(Some(template)) => template,
            _ if self.bundled => return Ok(plain(&conversation.messages)),
            Ok(None) => {
                let folder = self.pieces.folder.display();
                return Err(format!("messages, and the tokenizer in `{folder}` has no chat template"));
            }
            Err(error) => return Err(error.to_string()),
        };
        match template.render(&conversation.messages, conversation.tools.as_ref(), false, &Map::new()) {
            Ok(text) => Ok(text),
            // Some templates take no system message, for example.
            Err(_) if self.bundled => Ok(plain(&conversation.messages)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A conversation as a transcript: for the bundled text with models that have no template for it.
fn plain(messages: &[Value]) -> String {
    let turn = |message: &Value| {
        let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
        let role = text("role");
        let mut letters = role.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        format!("{}{}: {}", first.map(String::from).unwrap_or_default(), letters.as_str(), text("content"))
    };
    messages.iter().map(turn).collect::<Vec<_>>().join("\n\n")
}

/// At most `limit` ids of a text, with the tokens that the tokenizer puts before and after texts; as transformers does,
/// it is the text that is cut, and the tokens after it stay.
///
/// A template may have written the first of them already (`rendered`); ModelOpt then calibrates on two, this does not:
/// no inference engine sends two.
fn with_special_tokens(
    tokenizer: &Tokenizer,
    text: &str,
    limit: usize,
    rendered: bool,
) -> Result<Encoded, TokenizerError> {
    let bare = tokenizer.encode(text, false)?;
    let mut ids = tokenizer.encode(text, true)?;
    if rendered && ids.len() > bare.len() && ids.first() == bare.first() && ids[1..].starts_with(&bare) {
        ids.remove(0);
    }
    let truncated = ids.len() > limit;
    if truncated {
        let before = ids.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
        let after = ids.split_off((before + bare.len()).min(ids.len()));
        ids.truncate(limit.saturating_sub(after.len()));
        ids.extend(after);
        ids.truncate(limit);
    }
    Ok(Encoded { ids, truncated })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{pieces, tokenizer_with};
    use super::*;
    use longshore_infer::chat::ChatTemplate;
    use serde_json::json;

    fn ids(tokenizer: &Tokenizer, text: &str, limit: usize, rendered: bool) -> (Vec<u32>, bool) {
        let encoded = with_special_tokens(tokenizer, text, limit, rendered).unwrap();
        (encoded.ids, encoded.truncated)
    }

    #[test]
    fn texts_get_the_special_tokens_and_keep_those_at_the_end_when_cut() {
        // Words are a = 3, b = 4, c = 5; <s> = 1 stands before a text and </s> = 2 after it.
        let both = tokenizer_with("<s> $A </s>");
        assert_eq!(ids(&both, "a b c", 5, false), (vec![1, 3, 4, 5, 2], false));
        assert_eq!(ids(&both, "a b c", 4, false), (vec![1, 3, 4, 2], true));
        assert_eq!(ids(&both, "a b c", 1, false), (vec![2], true));
        let before = tokenizer_with("<s> $A");
        assert_eq!(ids(&before, "a b c", 2, false), (vec![1, 3], true));
        assert_eq!(ids(&tokenizer_with("$A"), "a b c", 2, false), (vec![3, 4], true));
    }

    #[test]
    fn a_template_that_writes_the_first_token_gets_no_second() {
        let both = tokenizer_with("<s> $A </s>");
        assert_eq!(ids(&both, "<s> a", 9, true), (vec![1, 3, 2], false));
        assert_eq!(ids(&both, "a b", 9, true), (vec![1, 3, 4, 2], false));
        // Who writes it into a text means it.
        assert_eq!(ids(&both, "<s> a", 9, false), (vec![1, 1, 3, 2], false));
    }

    #[test]
    fn messages_are_rendered_whole_and_without_a_reply_to_come() {
        let tokenizer = tokenizer_with("$A");
        let mut pieces = pieces(Some(&tokenizer));
        let source = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}c{% endif %}";
        pieces.template = ChatTemplate::from_source("t", source, Map::new()).map(Some);
        let encoder = Encoder::new(&pieces, true, false, None);
        let messages = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
        let encoded = encoder.encode(&Document { file: 0, line: 1, text: messages.to_string() }).unwrap().unwrap();
        assert_eq!(encoded.ids, [3, 4]);
    }

    #[test]
    fn messages_need_a_template_that_takes_them_unless_they_are_bundled() {
        let tokenizer = tokenizer_with("$A");
        let mut pieces = pieces(Some(&tokenizer));
        let document = Document { file: 0, line: 1, text: json!([{"role": "user", "content": "a"}]).to_string() };
        let encode = |pieces: &Pieces, bundled| Encoder::new(pieces, true, bundled, None).encode(&document);
        // `User:` is unknown to this tokenizer.
        let transcript = Ok(Some(Encoded { ids: vec![0, 3], truncated: false }));
        let error = encode(&pieces, false).unwrap_err();
        assert_eq!(error, "messages, and the tokenizer in `model` has no chat template");
        assert_eq!(encode(&pieces, true), transcript);
        let source = "{{ raise_exception('no') }}";
        pieces.template = ChatTemplate::from_source("t", source, Map::new()).map(Some);
        assert!(encode(&pieces, false).unwrap_err().contains("refuses the conversation: no"));
        assert_eq!(encode(&pieces, true), transcript);
    }

    #[test]
    fn a_transcript_names_who_speaks() {
        let messages = [json!({"role": "user", "content": "a"}), json!({"role": "assistant", "content": "b"})];
        assert_eq!(plain(&messages), "User: a\n\nAssistant: b");
    }
}
