//! `longshore arch`: the supported architectures and the tables that conversions use.

use super::Answer;
use crate::cli::ArchCommand;
use crate::error::UsageError;
use crate::nearest::nearest;
use crate::report::{Report, table};
use crate::units::count;
use anyhow::Result;
use longshore_convert::arch::{self, Architecture, RuleRow};
use serde_json::{Value, json};

pub(super) fn run(what: &ArchCommand, report: &Report) -> Result<Answer> {
    match what {
        ArchCommand::List => {
            let row = |a: &Architecture| [a.name, a.hf_class, commands(a), a.summary].map(str::to_owned).to_vec();
            let text = table(&arch::list().iter().map(row).collect::<Vec<_>>(), &[]);
            let fields = json!({"architectures": arch::list().iter().map(facts).collect::<Vec<_>>()});
            print(report, &text, &fields)
        }
        ArchCommand::Show { name } => {
            let (architecture, rules) = find(name)?;
            let pattern = (architecture.example)().pattern();
            let rows = [
                ["name", architecture.name],
                ["class", architecture.hf_class],
                ["summary", architecture.summary],
                ["commands", commands(architecture)],
                ["example", &pattern],
                ["rules", &count(rules.len() as u64)],
            ];
            let text = table(&rows.map(|row| row.map(str::to_owned).to_vec()), &[]);
            let mut fields = facts(architecture);
            fields["example"] = json!(pattern);
            fields["rules"] = json!(rules.len());
            print(report, &text, &json!({"architecture": fields}))
        }
        ArchCommand::Rules { name } => {
            let (architecture, rules) = find(name)?;
            let mut rows = vec![["rule", "", "hf → mc"].map(str::to_owned).to_vec()];
            let row = |rule: &RuleRow| [rule.rule.clone(), rule.word.to_owned(), format!("{} → {}", rule.hf, rule.mc)];
            rows.extend(rules.iter().map(|rule| row(rule).to_vec()));
            print(report, &table(&rows, &[]), &json!({"architecture": facts(architecture), "rules": rules}))
        }
    }
}

fn print(report: &Report, text: &str, fields: &Value) -> Result<Answer> {
    if report.is_json() {
        report.json("arch", fields)?;
    } else {
        report.data(text)?;
    }
    Ok(Answer::Yes)
}

fn facts(architecture: &Architecture) -> Value {
    json!({
        "name": architecture.name,
        "class": architecture.hf_class,
        "summary": architecture.summary,
        "converted": architecture.is_converted(),
    })
}

/// What can be done with its checkpoints.
fn commands(architecture: &Architecture) -> &'static str {
    if architecture.is_converted() { "all commands" } else { "runs (generate, logits, eval), is not converted" }
}

fn find(name: &str) -> Result<(&'static Architecture, Vec<RuleRow>), UsageError> {
    let names = || arch::list().iter().flat_map(|a| [a.name, a.hf_class]);
    let unknown = || UsageError::NoArchitecture { name: name.to_owned(), nearest: nearest(name, names()) };
    let architecture = arch::find(name).ok_or_else(unknown)?;
    let rules = arch::rules(architecture.name).ok_or_else(unknown)?;
    Ok((architecture, rules))
}
