use super::calibration::{ExpertTokens, InputRow};
use super::outputs::{OutputRow, Outputs};
use super::weights::{KindRow, WeightRow};
use super::*;
use crate::page::tests::{check_alone, elements};
use longshore_infer::site::Site;

/// A report on a model of this pattern, with as many experts.
fn example(pattern: &str, experts: usize) -> QuantReport {
    let pattern: Vec<char> = pattern.chars().collect();
    let mut axis: Vec<String> = (0..pattern.len()).map(|layer| layer.to_string()).collect();
    axis.push("output".to_owned());
    let row = |kind: Site, at: usize| KindRow {
        kind,
        scheme: "nvfp4/16".to_owned(),
        linears: if kind.is_routed() { experts as u64 } else { 1 },
        weights: 4096,
        sqnr_db: Some(20.5 + ((at * 7 + kind as usize * 3) % 11) as f64 * 0.25),
        worst_sqnr_db: Some(19.0),
        worst: format!("decoder.layers.{at}.{}", kind.module()),
        max_error: 0.0125 * 2f64.powi(i32::try_from(at % 9).expect("small") - 4),
        amax: 0.75,
        bits_per_weight: Some(4.5),
    };
    let sites = |letter: char| match letter {
        'M' => vec![Site::MambaIn, Site::MambaOut],
        '*' => vec![Site::Qkv, Site::Proj],
        '-' => vec![Site::Fc1, Site::Fc2],
        _ => vec![Site::ExpertFc1, Site::ExpertFc2, Site::SharedFc1, Site::SharedFc2],
    };
    let of_layers =
        || pattern.iter().enumerate().flat_map(|(at, &letter)| sites(letter).into_iter().map(move |s| (at, s)));
    let mut weights: Vec<WeightRow> =
        of_layers().map(|(at, site)| WeightRow { layer: at.to_string(), at, errors: row(site, at) }).collect();
    let output = KindRow { sqnr_db: None, worst_sqnr_db: None, max_error: 0.0, ..row(Site::Output, 0) };
    weights.push(WeightRow { layer: "output".to_owned(), at: pattern.len(), errors: output });
    let kinds =
        Site::ALL.into_iter().filter(|site| weights.iter().any(|w| w.errors.kind == *site)).map(|site| row(site, 1));
    let layers = pattern.iter().enumerate().map(|(layer, &kind)| OutputRow {
        layer,
        kind,
        sqnr_db: Some(32.0 - layer as f64 * 12.0 / pattern.len() as f64),
        max_error: 0.05 * (layer + 1) as f64,
        deviation: 1.25,
        rerouted: (kind == 'E').then_some(0.0625),
    });
    let outputs = Outputs {
        text: "10 held-out passages".to_owned(),
        tokens: 2412,
        kl_mean: 0.0123,
        kl_max: 0.75,
        kl_reverse_mean: 0.0131,
        top1_agreement: 0.953,
        perplexity: Some([7.25, 7.5]),
        layers: layers.collect(),
    };
    let inputs = of_layers().map(|(layer, kind)| InputRow {
        layer: Some(layer),
        kind,
        tokens: 65_536,
        amax: 1.5 * 1.7f32.powi(i32::try_from((layer * 5 + kind as usize) % 13).expect("small") - 3),
        weighted_amax: kind.is_routed().then_some(0.5),
    });
    let tokens = |layer: usize| {
        let of =
            |e: usize| if e % 61 == layer % 61 { (e % 3) as u64 } else { ((e * 37 + layer * 11) % 97 * 60) as u64 };
        (0..experts).map(of).collect()
    };
    let moe = pattern.iter().enumerate().filter(|(_, letter)| **letter == 'E');
    let experts: Vec<ExpertTokens> = moe.map(|(layer, _)| ExpertTokens::new(layer, tokens(layer))).collect();
    let notes = calibration::warning(&experts).into_iter().collect();
    QuantReport {
        config: "NVFP4_DEFAULT_CFG".to_owned(),
        architecture: "NemotronHForCausalLM".to_owned(),
        folders: ["tiny <&> \"model\"".to_owned(), "tiny-nvfp4".to_owned()],
        bytes: [63_200_000_000, 19_900_000_000],
        bits_per_weight: Some(4.5001),
        kinds: kinds.collect(),
        weights,
        outputs: Some(outputs),
        inputs: inputs.collect(),
        experts,
        axis,
        pattern,
        notes,
    }
}

#[test]
fn the_table_tells_the_model_then_the_kinds_then_the_layers() {
    let report = example("M*E-", 4);
    insta::assert_snapshot!(tables::render(&report, true));
    assert!(tables::render(&report, true).starts_with(&tables::render(&report, false)));
    assert_eq!(tables::render(&report, false).matches("mlp.linear_fc1").count(), 1);
}

#[test]
fn the_json_has_every_layer_and_null_for_what_is_exact() {
    let json = serde_json::to_value(example("M*E-", 4)).unwrap();
    assert_eq!(json["bytes"], serde_json::json!([63_200_000_000_u64, 19_900_000_000_u64]));
    assert_eq!(json["weights"].as_array().unwrap().len(), 2 + 2 + 4 + 2 + 1);
    assert_eq!(json["weights"][4]["kind"], "mlp.experts.linear_fc1");
    assert_eq!((&json["weights"][4]["layer"], &json["weights"][4]["linears"]), (&"2".into(), &4.into()));
    assert_eq!(json["weights"][10]["sqnr_db"], serde_json::Value::Null);
    assert_eq!(json["outputs"]["layers"][3]["kind"], "-");
    assert_eq!(json["outputs"]["top1_agreement"], 0.953);
    assert_eq!(json["experts"][0]["few"], serde_json::json!([2]));
    assert_eq!(json["inputs"].as_array().unwrap().len(), 10);
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_else() {
    let page = page::render(&example("M*E-ME", 128));
    let elements = elements(&page);
    let count = |name: &str| elements.iter().filter(|e| *e == name).count();
    assert_eq!((count("figure"), count("table"), count("h1"), count("script"), count("link")), (6, 5, 1, 0, 0));
    assert!(page.contains("tiny &lt;&amp;&gt; &quot;model&quot;"));
    check_alone(&page);
}

#[test]
fn the_page_has_a_mark_for_every_layer_and_kind() {
    let report = example("M*E-ME", 128);
    let page = page::render(&report);
    for layer in 0..6 {
        assert!(page.matches(&format!("<title>layer {layer}, ")).count() >= 7, "{layer}");
    }
    for label in ["layer 2, experts fc1: 23.0 dB", "layer 3, MLP: ", "layer 5: 128 experts, 0 to"] {
        assert!(page.contains(&format!("<title>{label}")), "{label}");
    }
    assert!(page.contains("of 256 experts saw fewer"), "the warning");
}

#[test]
fn nothing_at_all_is_still_a_page() {
    let report = QuantReport::default();
    elements(&page::render(&report));
    assert!(page::render(&report).contains("No routed experts were observed."));
    assert!(tables::render(&report, true).starts_with("config"));
    let lost =
        KindRow { sqnr_db: Some(f64::NEG_INFINITY), max_error: f64::INFINITY, ..example("M", 0).kinds[0].clone() };
    let weights = vec![WeightRow { layer: "0".to_owned(), at: 0, errors: lost }];
    let report = QuantReport { weights, axis: vec!["0".to_owned()], ..QuantReport::default() };
    elements(&page::render(&report));
    assert!(page::render(&report).contains("nothing to show") && tables::render(&report, true).contains("lost"));
}

#[test]
fn the_page_of_a_huge_model_stays_small() {
    let pattern: String = "MEME*EMEMEM".repeat(10);
    let page = page::render(&example(&pattern, 512));
    elements(&page);
    assert!((100_000..2_000_000).contains(&page.len()), "{}", page.len());
    let page = page::render(&example(&"E".repeat(200), 4096));
    assert!(page.contains("the least of 13 experts") && page.len() < 4_000_000, "{}", page.len());
}

/// Writes pages for whoever wants to look at them, where `LONGSHORE_PAGES` names a folder.
#[test]
fn pages_can_be_looked_at() {
    let Some(folder) = std::env::var_os("LONGSHORE_PAGES").map(std::path::PathBuf::from) else { return };
    std::fs::write(folder.join("small.html"), page::render(&example("M*E-ME", 16))).unwrap();
    std::fs::write(folder.join("large.html"), page::render(&example(&"MEME*EMEMEM".repeat(10), 512))).unwrap();
    std::fs::write(folder.join("empty.html"), page::render(&QuantReport::default())).unwrap();
}
