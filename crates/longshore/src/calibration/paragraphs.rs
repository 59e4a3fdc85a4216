//! Plain text as samples.

use super::choice::Choice;
use super::record::Document;
use longshore_infer::tokenizer::{Tokenizer, TokenizerError};

/// Gathers paragraphs, which blank lines separate, into documents of at most `budget` tokens.
///
/// A document begins and ends with a paragraph. A paragraph that alone has more tokens is cut between two of its lines;
/// a line that alone has more is a document of its own, which is too long. Tokens are counted line by line, so a
/// document can have a few tokens more or less than was counted.
pub(super) struct Paragraphs<'a> {
    tokenizer: &'a Tokenizer,
    budget: usize,
    /// Whole paragraphs.
    closed: Part,
    /// The paragraph that the last line belongs to.
    open: Part,
}

#[derive(Default)]
struct Part {
    line: u64,
    text: String,
    tokens: usize,
}

impl Part {
    fn add(&mut self, separator: &str, more: Part) {
        if self.text.is_empty() {
            *self = more;
        } else {
            self.text.push_str(separator);
            self.text.push_str(&more.text);
            self.tokens += more.tokens;
        }
    }

    fn take(&mut self, choice: &mut Choice<Document>) {
        let part = std::mem::take(self);
        if !part.text.is_empty() {
            choice.offer(Document { file: 0, line: part.line, text: part.text });
        }
    }
}

impl<'a> Paragraphs<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, budget: usize) -> Self {
        Self { tokenizer, budget, closed: Part::default(), open: Part::default() }
    }

    /// Takes the next line, and offers the documents that it completes.
    pub(super) fn line(
        &mut self,
        line: u64,
        text: String,
        choice: &mut Choice<Document>,
    ) -> Result<(), TokenizerError> {
        if text.trim().is_empty() {
            self.close();
            return Ok(());
        }
        // Its line end is counted with it, as most tokenizers have a token for it.
        let tokens = self.tokenizer.encode(&text, false)?.len() + 1;
        if self.closed.tokens + self.open.tokens + tokens > self.budget {
            self.closed.take(choice);
        }
        if self.open.tokens + tokens > self.budget {
            self.open.take(choice);
        }
        self.open.add("\n", Part { line, text, tokens });
        Ok(())
    }

    /// Offers what is left.
    pub(super) fn finish(mut self, choice: &mut Choice<Document>) {
        self.close();
        self.closed.take(choice);
    }

    fn close(&mut self) {
        let paragraph = std::mem::take(&mut self.open);
        if !paragraph.text.is_empty() {
            self.closed.add("\n\n", paragraph);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::tokenizer;
    use super::*;

    fn gather(text: &str, budget: usize) -> Vec<(u64, String)> {
        let tokenizer = tokenizer();
        let mut choice = Choice::new(usize::MAX, 0);
        let mut paragraphs = Paragraphs::new(&tokenizer, budget);
        for (at, line) in text.lines().enumerate() {
            paragraphs.line(at as u64 + 1, line.to_owned(), &mut choice).unwrap();
        }
        paragraphs.finish(&mut choice);
        choice.finish().into_iter().map(|document| (document.line, document.text)).collect()
    }

    #[test]
    fn paragraphs_are_gathered_up_to_the_budget_and_not_cut() {
        // Each line has 2 tokens with its end.
        let text = "a\nb\n\nc\n \n\nd\ne\n\nf\n";
        let documents = [(1, "a\nb\n\nc"), (7, "d\ne\n\nf")].map(|(line, text)| (line, text.to_owned()));
        assert_eq!(gather(text, 6), documents);
        assert_eq!(gather(text, 9), documents);
        assert_eq!(gather(text, 12), [(1, "a\nb\n\nc\n\nd\ne\n\nf".to_owned())]);
    }

    #[test]
    fn a_long_paragraph_is_cut_between_lines() {
        let documents = gather("x\n\na\nb\nc\nd\ne\n\ny", 4);
        let expected = [(1, "x"), (3, "a\nb"), (5, "c\nd"), (7, "e\n\ny")];
        assert_eq!(documents, expected.map(|(line, text)| (line, text.to_owned())));
        assert_eq!(gather("a b c d e f g h", 4).len(), 1);
    }
}
