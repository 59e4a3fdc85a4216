//! A key taken out of config.json without touching what else is there.

use super::insert::KEY;

/// The text of a config.json without its top-level key `quantization_config`; `None` where it has none. The text parses.
pub fn remove(config_json: &str) -> Option<String> {
    remove_key(config_json, KEY)
}

/// The same for any key.
pub(crate) fn remove_key(config_json: &str, key: &str) -> Option<String> {
    let bytes = config_json.as_bytes();
    let (mut depth, mut at, mut previous_comma, mut begin) = (0u32, 0, None, None);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let end = string_end(bytes, at)?;
                let after = bytes[end..].iter().position(|b| !b.is_ascii_whitespace()).map(|n| end + n);
                let is_key = depth == 1 && after.is_some_and(|i| bytes[i] == b':');
                if is_key && begin.is_none() && config_json[at..end] == format!("\"{key}\"") {
                    begin = Some(at);
                }
                at = end;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    // It was the last key: the comma before it goes too.
                    let begin = begin?;
                    let from = previous_comma.unwrap_or(begin);
                    let gap = config_json[..at].trim_end().len();
                    return Some(format!("{}{}", &config_json[..from], &config_json[gap..]));
                }
            }
            b',' if depth == 1 => match begin {
                Some(begin) => {
                    let next =
                        bytes[at + 1..].iter().position(|b| !b.is_ascii_whitespace()).map_or(at + 1, |n| at + 1 + n);
                    return Some(format!("{}{}", &config_json[..begin], &config_json[next..]));
                }
                None => previous_comma = Some(at),
            },
            _ => {}
        }
        at += 1;
    }
    None
}

/// The index after the closing quote of the string that begins at `at`.
fn string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let mut i = at + 1;
    loop {
        match bytes.get(i)? {
            b'\\' => i += 2,
            b'"' => return Some(i + 1),
            _ => i += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::remove;

    #[test]
    fn only_the_key_at_the_top_goes_and_every_other_byte_stays() {
        let first = "{\n  \"quantization_config\": {\"a\": [1, \"}\"]},\n  \"b\": Infinity\n}\n";
        assert_eq!(remove(first).as_deref(), Some("{\n  \"b\": Infinity\n}\n"));
        let last = "{\n  \"b\": {\"quantization_config\": 1},\n  \"quantization_config\": {\"x\": \"\\\"\"}\n}\n";
        assert_eq!(remove(last).as_deref(), Some("{\n  \"b\": {\"quantization_config\": 1}\n}\n"));
        assert_eq!(remove("{\"quantization_config\": 1}").as_deref(), Some("{}"));
        assert_eq!(remove("{\"a\": \"quantization_config\"}"), None);
    }
}
