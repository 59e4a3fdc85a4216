//! A key taken out of config.json without touching what else is there.

use super::insert::KEY;
use crate::config::text::entries;

/// The text of a config.json without its top-level key `quantization_config`; `None` where it has none. The text parses.
pub fn remove(config_json: &str) -> Option<String> {
    remove_key(config_json, KEY)
}

/// The same for any key.
pub(crate) fn remove_key(config_json: &str, key: &str) -> Option<String> {
    let entries = entries(config_json);
    let at = entries.iter().position(|entry| entry.key == key)?;
    let entry = &entries[at];
    let (from, to) = match (entries.get(at + 1), at.checked_sub(1)) {
        (Some(next), _) => (entry.begin, next.begin),
        // It was the last key: the comma before it goes too.
        (None, Some(before)) => (entries[before].value.end, entry.value.end),
        (None, None) => (entry.begin, entry.value.end),
    };
    Some(format!("{}{}", &config_json[..from], &config_json[to..]))
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
