//! `longshore inspect`: what a checkpoint holds, from its headers alone.

mod structure;

use super::Answer;
use crate::cli::InspectArgs;
use crate::error::UsageError;
use crate::locate;
use crate::options::{Env, format_name};
use crate::report::{Report, table};
use crate::units::{bytes, count, counted};
use anyhow::Result;
use longshore_ckpt::{Catalog, Format, TensorInfo};
use longshore_convert::config::ModelConfig;
use longshore_convert::diff::glob_matches;
use longshore_convert::model::Model;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn run(args: &InspectArgs, env: &Env, report: &Report) -> Result<Answer> {
    let catalog = Catalog::open(&locate::checkpoint(&args.checkpoint, env)?)?;
    if args.raw {
        let common = catalog.common.as_ref().ok_or_else(|| UsageError::NoPickle { path: catalog.folder.clone() })?;
        report.data(&(common.root().to_text() + "\n"))?;
        return Ok(Answer::Yes);
    }
    if args.structure {
        let module = longshore_convert::structure::structure(catalog)?.folded();
        if report.is_json() {
            report.json("inspect", &json!({ "structure": structure::object(&module) }))?;
        } else {
            report.data(&structure::text(&module))?;
        }
        return Ok(Answer::Yes);
    }
    let matches = |name: &str| args.glob.as_ref().is_none_or(|glob| glob_matches(glob, name));
    let tensors: Vec<(&String, &TensorInfo)> = catalog.tensors.iter().filter(|(name, _)| matches(name)).collect();
    // A checkpoint without a config, or with a broken one, is shown all the same.
    let model = model(&catalog);
    if report.is_json() {
        report.json("inspect", &json(&catalog, &tensors, model.as_ref().ok()))?;
        return Ok(Answer::Yes);
    }
    let listing = if args.files { file_table(&catalog) } else { tensor_table(&catalog, &tensors) };
    report.data(&format!("{}\n{listing}", head(&catalog, &tensors, &model)))?;
    Ok(Answer::Yes)
}

/// What the checkpoint says of its model, or why that is not known.
pub(super) fn model(catalog: &Catalog) -> Result<ModelConfig, String> {
    let model = match catalog.format {
        Format::Safetensors => Model::from_folder(&catalog.folder),
        Format::TorchDist => Model::from_torch_dist(catalog, None),
    };
    model.map(|model| model.config).map_err(|error| error.to_string())
}

/// One line per fact.
pub(super) fn head(
    catalog: &Catalog,
    tensors: &[(&String, &TensorInfo)],
    model: &Result<ModelConfig, String>,
) -> String {
    let model = match model {
        Ok(model) => format!(
            "{}, hidden size {}, vocabulary {}, {} {}{}",
            model.architecture,
            model.hidden_size,
            count(model.vocab_size),
            counted(model.layers.len() as u64, "layer"),
            model.pattern(),
            if model.mtp.is_some() { ", MTP" } else { "" },
        ),
        Err(error) => format!("not known: {error}"),
    };
    let chunks: usize = tensors.iter().map(|(_, info)| info.chunks.len()).sum();
    // Shapes are claims: without all their chunks they can add up to more than there are numbers.
    let data = tensors.iter().fold(0u64, |sum, (_, info)| sum.saturating_add(info.size()));
    let mut shown = count(tensors.len() as u64);
    if tensors.len() < catalog.tensors.len() {
        shown = format!("{shown} of {}", count(catalog.tensors.len() as u64));
    }
    let size = catalog.files.iter().map(|file| file.size).sum();
    let mut rows = vec![
        ["format", format_name(catalog.format)].map(str::to_owned).to_vec(),
        vec!["folder".into(), catalog.folder.display().to_string()],
        vec!["model".into(), model],
        vec!["files".into(), format!("{}, {}", count(catalog.files.len() as u64), bytes(size))],
        vec![
            "tensors".into(),
            format!("{shown}, {}, {}: {}", bytes(data), counted(chunks as u64, "chunk"), dtypes(tensors)),
        ],
    ];
    if let Some(prefix) = catalog.prefix {
        rows.push(vec!["prefix".into(), format!("`{prefix}` before every name, left out here")]);
    }
    if catalog.format == Format::TorchDist {
        rows.push(vec!["objects".into(), count(catalog.objects.len() as u64)]);
    }
    table(&rows, &[])
}

/// `119 float32, 6,400 bfloat16`
fn dtypes(tensors: &[(&String, &TensorInfo)]) -> String {
    let mut counts = BTreeMap::new();
    for (_, info) in tensors {
        *counts.entry(info.dtype).or_insert(0) += 1;
    }
    counts.iter().map(|(dtype, n)| format!("{} {dtype}", count(*n))).collect::<Vec<_>>().join(", ")
}

/// The names of the files that a tensor's chunks lie in, each once.
fn files<'a>(catalog: &'a Catalog, info: &TensorInfo) -> Vec<&'a str> {
    let indices: BTreeSet<u32> = info.chunks.iter().map(|chunk| chunk.extent.file).collect();
    indices.into_iter().filter_map(|index| catalog.files.get(index as usize)).map(|file| file.name.as_str()).collect()
}

fn tensor_table(catalog: &Catalog, tensors: &[(&String, &TensorInfo)]) -> String {
    let mut rows = vec![["name", "dtype", "shape", "chunks", "file"].map(str::to_owned).to_vec()];
    for (name, info) in tensors {
        let files = files(catalog, info);
        let more = if files.len() > 1 { format!(" and {} more", files.len() - 1) } else { String::new() };
        rows.push(vec![
            (*name).clone(),
            info.dtype.to_string(),
            format!("{:?}", info.shape),
            count(info.chunks.len() as u64),
            files.first().map(|file| format!("{file}{more}")).unwrap_or_default(),
        ]);
    }
    table(&rows, &[3])
}

fn file_table(catalog: &Catalog) -> String {
    let mut chunks = vec![0; catalog.files.len()];
    for chunk in catalog.tensors.values().flat_map(|info| &info.chunks) {
        if let Some(n) = chunks.get_mut(chunk.extent.file as usize) {
            *n += 1;
        }
    }
    let mut rows = vec![["file", "size", "chunks"].map(str::to_owned).to_vec()];
    rows.extend(catalog.files.iter().zip(chunks).map(|(file, n)| vec![file.name.clone(), bytes(file.size), count(n)]));
    table(&rows, &[1, 2])
}

fn json(catalog: &Catalog, tensors: &[(&String, &TensorInfo)], model: Option<&ModelConfig>) -> Value {
    let tensors: Vec<Value> = tensors
        .iter()
        .map(|(name, info)| {
            json!({
                "name": name,
                "dtype": info.dtype,
                "shape": info.shape,
                "bytes": info.size(),
                "chunks": info.chunks.len(),
                "files": files(catalog, info),
            })
        })
        .collect();
    json!({
        "format": catalog.format,
        "folder": catalog.folder,
        "model": model,
        "bytes": catalog.total_size(),
        "objects": catalog.objects.len(),
        "prefix": catalog.prefix,
        "files": catalog.files,
        "tensors": tensors,
    })
}
