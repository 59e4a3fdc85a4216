//! Prints each recipe named on standard input, one a line, as a Python literal: the config, the modes that it records and
//! whether it needs calibration, or the error as a text. `interop/recipes.py` compares it with what ModelOpt's loader gives.
//! Without names: the names of those that are built in, current ones and older ones.

use longshore_quant::config::recipe::Library;
use longshore_quant::config::{Algorithm, Plain, built_ins};
use std::io::{Read, Write};

fn main() -> std::io::Result<()> {
    let mut names = String::new();
    std::io::stdin().read_to_string(&mut names)?;
    let mut out = std::io::stdout().lock();
    if names.is_empty() {
        for recipe in built_ins() {
            let older = Plain::List(recipe.older.iter().map(|name| Plain::str(*name)).collect());
            writeln!(out, "{}", python(&Plain::Tuple(vec![Plain::str(recipe.name), older])))?;
        }
    }
    let read = |path: &str| std::fs::read_to_string(path);
    for name in names.lines() {
        let said = match (Library { read: &read, dirs: vec![] }).load(name) {
            Ok(recipe) => {
                let modes = recipe.config.algorithm.iter().map(Algorithm::mode);
                let modes = modes.map(|(name, config)| Plain::Tuple(vec![Plain::Str(name), config]));
                let needs = recipe.config.need_calibration().into();
                Plain::Tuple(vec![recipe.config.dump(), Plain::List(modes.collect()), needs])
            }
            Err(error) => Plain::Str(error.to_string()),
        };
        writeln!(out, "{}", python(&said))?;
    }
    Ok(())
}

/// As `repr` writes it, texts with any quotes.
fn python(value: &Plain) -> String {
    let all = |items: &[Plain]| items.iter().map(python).collect::<Vec<_>>().join(", ");
    match value {
        Plain::None => "None".to_owned(),
        Plain::Bool(true) => "True".to_owned(),
        Plain::Bool(false) => "False".to_owned(),
        Plain::Int(value) => value.to_string(),
        Plain::Float(value) => format!("{value:?}"),
        Plain::Str(text) | Plain::Dtype(text) => format!("{text:?}"),
        Plain::List(items) => format!("[{}]", all(items)),
        Plain::Tuple(items) => format!("({},)", all(items)),
        Plain::Size(sizes) => format!("{sizes:?}"),
        Plain::Dict(entries) => {
            let entries = entries.iter().map(|(key, value)| format!("{}: {}", python(key), python(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}
