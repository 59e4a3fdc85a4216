//! The modules of a model as Megatron builds it, a line each. `interop/structure.py` compares them with Megatron's own.

use crate::hf_folder::{self, declared};
use crate::refusals::import_options;
use crate::snapshots::{filters, model};
use longshore_ckpt::{Catalog, Dtype};
use longshore_convert::config::{ModelConfig, release};
use longshore_convert::options::{ImportOptions, NormKeys, SpecName};
use longshore_convert::plan::plan_import;
use longshore_convert::progress::Silent;
use longshore_convert::run::{RunOptions, execute};
use longshore_convert::structure::{Module, Spec, structure};
use std::fmt::Write as _;
use std::path::Path;

fn lines(module: &Module, path: &str, out: &mut String) {
    let name = module.names.join(",");
    let path = if path.is_empty() { name } else { format!("{path}.{name}") };
    let _ = write!(out, "{path} {}", module.class);
    for p in &module.parameters {
        let _ = write!(out, " {}{}{:?}", p.name, p.count.map_or(String::new(), |n| format!("*{n}")), p.shape);
    }
    out.push('\n');
    for module in &module.modules {
        lines(module, &path, out);
    }
}

fn text(module: &Module) -> String {
    let mut out = String::new();
    lines(module, "", &mut out);
    out
}

/// A folder with the model, of zeros.
fn write(folder: &Path, config: &ModelConfig) {
    let text = serde_json::to_string(&release::hf_json(config).0).unwrap();
    hf_folder::write(folder, &text, &declared(config, Dtype::Bfloat16), u64::MAX, None);
}

#[test]
fn a_checkpoint_shows_the_modules_of_its_spec_and_a_folder_those_of_the_te_spec() {
    let dir = tempfile::tempdir().unwrap();
    let (hf, te, local) = (dir.path().join("hf"), dir.path().join("te"), dir.path().join("local"));
    write(&hf, &model());
    let of_local = ImportOptions { spec: SpecName::Local, norms: NormKeys::Separate, ..import_options() };
    for (folder, options) in [(&te, import_options()), (&local, of_local)] {
        let plan = plan_import(&hf, folder, &options).unwrap();
        execute(&plan, &RunOptions { threads: 2, force: false }, &Silent).unwrap();
    }
    let shown = |folder: &Path| text(&structure(Catalog::open(folder).unwrap()).unwrap());
    assert_eq!(shown(&hf), shown(&te));
    filters().bind(|| {
        insta::assert_snapshot!("the_modules_of_the_te_spec", shown(&te));
        insta::assert_snapshot!("the_modules_of_the_local_spec", shown(&local));
    });
}

#[test]
fn layers_that_are_alike_are_shown_once_and_none_is_lost() {
    let mut config = model();
    config.layers = config.layers.iter().cycle().take(10).copied().collect();
    let spec = Spec::new(SpecName::Te, &config);
    let whole = longshore_convert::arch::find("nemotron_h").unwrap().structure.unwrap()(&config, spec);
    let folded = whole.clone().folded();
    let names = |module: &Module| {
        let layers = module.modules.iter().find(|m| m.class == "MambaStack").unwrap().modules[0].modules.clone();
        layers.into_iter().map(|layer| layer.names.join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(names(&whole).len(), 10);
    assert_eq!(names(&folded), ["0 4 8", "1 5 9", "2 6", "3 7"]);
}

#[test]
fn sequential_experts_of_the_te_spec_have_its_linears() {
    let config = model();
    let spec = Spec { sequential_experts: true, ..Spec::new(SpecName::Te, &config) };
    let module = longshore_convert::arch::find("nemotron_h").unwrap().structure.unwrap()(&config, spec);
    let text = text(&module.folded());
    assert!(text.contains("mlp.experts SequentialMLP\n"), "{text}");
    assert!(text.contains("local_experts.0,1,2,3.linear_fc1 TEColumnParallelLinear weight[8, 8]\n"), "{text}");
}
