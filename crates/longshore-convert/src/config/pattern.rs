//! Layer patterns: strings of Megatron's letters and Hugging Face's lists of names. `|` cuts pipeline stages and says
//! nothing of the layers; each part after a `/` is one MTP block (Megatron-LM
//! `core/models/hybrid/hybrid_layer_allocation.py`, `parse_hybrid_pattern`).

use serde_json::Value;

/// A pattern taken apart: checked letters only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// The trunk, without `|`.
    pub(crate) trunk: String,
    /// The letters of one MTP block and how many blocks follow.
    pub(crate) mtp: Option<(String, u64)>,
}

/// Takes a pattern apart, or says what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<Pattern, String> {
    let mut parts = text.split('/');
    let trunk = parts.next().unwrap_or_default().replace('|', "");
    check(&trunk)?;
    let blocks: Vec<&str> = parts.collect();
    let mtp = match blocks.first() {
        Some(first) if blocks.iter().any(|b| !b.is_empty()) => {
            if let Some(other) = blocks.iter().find(|b| b != &first) {
                return Err(format!("the MTP patterns `{first}` and `{other}` differ"));
            }
            check(first)?;
            Some(((*first).to_owned(), blocks.len() as u64))
        }
        _ => None,
    };
    Ok(Pattern { trunk, mtp })
}

/// The letters of a list of layer names, of transformers 5 (`linear_attention`) or before (`mamba`).
pub(crate) fn from_names(names: &[Value]) -> Result<String, String> {
    if names.is_empty() {
        return Err("no layers".into());
    }
    let letter = |name: &Value| match name.as_str() {
        Some("mamba" | "linear_attention") => Ok('M'),
        Some("attention" | "full_attention") => Ok('*'),
        Some("mlp") => Ok('-'),
        Some("moe") => Ok('E'),
        _ => Err(format!("the layer type {name} is not known")),
    };
    names.iter().map(letter).collect()
}

fn check(pattern: &str) -> Result<(), String> {
    let known = match pattern.chars().find(|c| !"M*-E".contains(*c)) {
        None if pattern.is_empty() => return Err("no layers".into()),
        None => return Ok(()),
        Some('G') => "`G` (gated delta net)".into(),
        Some('D') => "`D` (sparse attention)".into(),
        Some('+') => "`+` (multi-latent attention)".into(),
        Some('|') => return Err("`|` inside an MTP pattern".into()),
        Some(other) => format!("`{other}`"),
    };
    Err(format!("the layer letter {known} is not supported, expected `M`, `*`, `-` or `E`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_come_apart_as_megatron_takes_them_apart() {
        let of = |text: &str| parse(text).map(|p| (p.trunk, p.mtp));
        let mtp = |block: &str, depth| Some((block.to_owned(), depth));
        assert_eq!(of("M*M*"), Ok(("M*M*".into(), None)));
        assert_eq!(of("M-M-|M-M*-/MM/MM"), Ok(("M-M-M-M*-".into(), mtp("MM", 2))));
        assert_eq!(of("MMMM/*M/*M/*M"), Ok(("MMMM".into(), mtp("*M", 3))));
        assert_eq!(of("MM/"), Ok(("MM".into(), None)));
        for wrong in ["", "|", "/*E", "MX", "MG", "M/*E/*", "M/*E/", "M/*|E", "m"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn both_generations_of_names_give_the_same_letters() {
        let list = |text: &str| from_names(serde_json::from_str::<Value>(text).unwrap().as_array().unwrap());
        assert_eq!(list(r#"["mamba","attention","mlp","moe"]"#), Ok("M*-E".into()));
        assert_eq!(list(r#"["linear_attention","full_attention","mlp","moe"]"#), Ok("M*-E".into()));
        assert_eq!(list(r#"["sliding_attention"]"#), Err("the layer type \"sliding_attention\" is not known".into()));
        assert!(list("[]").is_err());
    }
}
