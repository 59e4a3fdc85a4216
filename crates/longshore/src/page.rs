//! Pages that any browser opens: no script, nothing to load. They are well-formed XML too, so that anything can read them.

pub(crate) mod plot;

use std::borrow::Cow;
use std::fmt::Write as _;

const STYLE: &str = include_str!("page/style.css");

/// A whole page around `body`, which is markup; `title` is text.
pub(crate) fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"generator\" content=\"longshore {}\"/>\n<title>{}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION"),
        escape(title),
    )
}

/// A table that is folded unless `open`; nothing without rows. The first `text` columns and what has no digit first are
/// text.
pub(crate) fn table(title: &str, heads: &[&str], text: usize, rows: Vec<Vec<String>>, open: bool, page: &mut String) {
    if rows.is_empty() {
        return;
    }
    let open = if open { " open=\"open\"" } else { "" };
    let title = escape(title);
    let _ = write!(page, "<details{open}>\n<summary>{title}</summary>\n<div class=\"wide\"><table>\n<thead><tr>");
    for head in heads {
        let _ = write!(page, "<th scope=\"col\">{}</th>", escape(head));
    }
    *page += "</tr></thead>\n<tbody>\n";
    for row in rows {
        *page += "<tr>";
        for (i, cell) in row.iter().enumerate() {
            let is_number = i >= text && cell.len() < 16;
            let class = if is_number { " class=\"n\"" } else { "" };
            let _ = write!(page, "<td{class}>{}</td>", escape(cell));
        }
        *page += "</tr>\n";
    }
    *page += "</tbody>\n</table></div>\n</details>\n";
}

/// Text for any place of a page. Names come from files, and XML has neither control characters nor the two that are none.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    let absent = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    let special = |c: char| matches!(c, '&' | '<' | '>' | '"' | '\'') || absent(c);
    if !text.contains(special) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if absent(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The names of the elements, in order; panics where they do not nest or text is not escaped.
    pub(crate) fn elements(page: &str) -> Vec<String> {
        let (mut open, mut all) = (Vec::new(), Vec::new());
        let body = page.strip_prefix("<!DOCTYPE html>").unwrap();
        for part in body.split('<').skip(1) {
            let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("`<{part}` is not closed"));
            let entities = ["amp;", "lt;", "gt;", "quot;", "#39;"];
            let escaped = text.split('&').skip(1).all(|rest| entities.iter().any(|entity| rest.starts_with(entity)));
            assert!(escaped && (!text.contains('>') || tag == "style"), "{text}");
            let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap().to_owned();
            assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name));
            } else {
                if !tag.ends_with('/') {
                    open.push(name.clone());
                }
                all.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
        all
    }

    /// That the page loads nothing.
    pub(crate) fn check_alone(page: &str) {
        let outside = page.replace("http://www.w3.org/1999/xhtml", "");
        for word in ["http:", "https:", "url(", "@import", "src=", "<script", "<link"] {
            assert!(!outside.contains(word), "{word}");
        }
    }

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("a<b>&\"'\u{1b}\u{ffff}\n"), "a&lt;b&gt;&amp;&quot;&#39;\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(escape("plain µ"), "plain µ");
    }
}
