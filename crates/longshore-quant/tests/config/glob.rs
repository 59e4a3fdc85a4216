//! Patterns.

use longshore_quant::config::Glob;
use proptest::prelude::*;

fn fits(pattern: &str, name: &str) -> bool {
    Glob::new(pattern).matches(name)
}

#[test]
fn patterns_are_pythons() {
    // Every line was checked with fnmatch of Python 3.11.
    for (pattern, name, expected) in [
        ("", "", true),
        ("", "a", false),
        ("*", "", true),
        ("*", "a.b.c", true),
        ("a*", "ba", false),
        ("*a*b", "xaybzb", true),
        ("*a*b", "xaybzbc", false),
        ("?", "", false),
        ("?", "\n", true),
        ("a?c", "abc", true),
        ("[ab]", "b", true),
        ("[!ab]", "b", false),
        ("[!ab]", "c", true),
        ("[a-c]x", "bx", true),
        ("[a-c]x", "dx", false),
        ("[c-a]", "b", false),
        ("[!c-a]", "b", true),
        ("[-a]", "-", true),
        ("[a-]", "-", true),
        ("[--a]", "A", true),
        ("[a-c-e]", "d", false),
        ("[a-c-e]", "-", true),
        ("[]a]", "]", true),
        ("[!]a]", "]", false),
        ("[!]a]", "b", true),
        ("[", "[", true),
        ("[!", "[!", true),
        ("[]", "[]", true),
        ("[a", "[a", true),
        ("[^a]", "^", true),
        ("[^a]", "b", false),
        ("[[]", "[", true),
        ("[\\]", "\\", true),
        ("a.c", "abc", false),
        ("A", "a", false),
        ("**a", "ba", true),
        ("é?", "éa", true),
        ("[à-ý]", "é", true),
    ] {
        assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
    }
}

/// The definition, without regard to time.
fn slow(pattern: &[char], name: &[char]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some(('*', rest)), _) => slow(rest, name) || name.split_first().is_some_and(|(_, tail)| slow(pattern, tail)),
        (Some((p, rest)), Some((c, tail))) => (*p == '?' || p == c) && slow(rest, tail),
        _ => false,
    }
}

proptest! {
    #[test]
    fn stars_match_what_their_definition_says(pattern in "[ab*?]{0,8}", name in "[ab]{0,10}") {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        prop_assert_eq!(fits(&pattern, &name), slow(&chars(&pattern), &chars(&name)));
    }

    #[test]
    fn any_text_is_a_pattern(pattern in ".{0,20}", name in ".{0,20}") {
        fits(&pattern, &name);
    }
}
