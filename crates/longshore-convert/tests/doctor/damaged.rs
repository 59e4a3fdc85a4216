//! The bundled model, with something wrong with it.

use half::bf16;
use longshore_ckpt::{Dtype, safetensors};
use longshore_convert::doctor::{Check, DoctorReport, Finding, Severity, doctor};
use longshore_convert::progress::Silent;
use longshore_convert::run::{RunOptions, execute};
use longshore_convert::{ImportOptions, Layout, SpecName, plan_import};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the sound model has: it was trained without correction biases.
pub(crate) const NOTE: (Severity, Check) = (Severity::Note, Check::RouterBiasAtZero);

/// A tensor in memory.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn new(dtype: Dtype, shape: &[u64], values: &[f32]) -> Self {
        let mut tensor = Self { dtype, shape: shape.to_vec(), bytes: Vec::new() };
        tensor.set(values);
        tensor
    }

    pub(crate) fn values(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::Bfloat16 => self.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            _ => self.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        }
    }

    pub(crate) fn set(&mut self, values: &[f32]) {
        self.bytes = match self.dtype {
            Dtype::Bfloat16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
    }

    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Vec<f32>)) {
        let mut values = self.values();
        change(&mut values);
        self.set(&values);
    }

    /// Puts row `order[i]` where row i is.
    pub(crate) fn reorder(&mut self, order: &[usize]) {
        let size = self.bytes.len() / order.len();
        self.bytes = order.iter().flat_map(|row| self.bytes[row * size..(row + 1) * size].to_vec()).collect();
    }
}

/// The tensors and the config of a model.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) tensors: BTreeMap<String, Tensor>,
    pub(crate) config: Value,
}

impl Model {
    /// The bundled one.
    pub(crate) fn sound() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m");
        let bytes = std::fs::read(folder.join("model.safetensors")).expect("the bundled model");
        let len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + len]).expect("a header");
        let number = |value: &Value| value.as_u64().expect("a number");
        let tensor = |entry: &Value| {
            let [begin, end] = [0, 1].map(|i| 8 + len + number(&entry["data_offsets"][i]) as usize);
            let shape = entry["shape"].as_array().expect("a shape").iter().map(number).collect();
            let dtype = Dtype::from_safetensors_name(entry["dtype"].as_str().expect("a dtype")).expect("a known one");
            Tensor { dtype, shape, bytes: bytes[begin..end].to_vec() }
        };
        let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
        let tensors = tensors.map(|(name, entry)| (name.clone(), tensor(entry))).collect();
        let config = std::fs::read(folder.join("config.json")).expect("its config");
        Self { tensors, config: serde_json::from_slice(&config).expect("JSON") }
    }

    pub(crate) fn get(&mut self, name: &str) -> &mut Tensor {
        self.tensors.get_mut(name).unwrap_or_else(|| panic!("no tensor `{name}`"))
    }

    /// The names that begin and end so.
    pub(crate) fn names(&self, prefix: &str, suffix: &str) -> Vec<String> {
        self.tensors.keys().filter(|n| n.starts_with(prefix) && n.ends_with(suffix)).cloned().collect()
    }

    pub(crate) fn write(&self, folder: &Path) {
        std::fs::create_dir(folder).expect("a new folder");
        let entries: Vec<_> = self.tensors.iter().map(|(n, t)| (n.as_str(), t.dtype, t.shape.as_slice())).collect();
        let mut file = safetensors::header_bytes(&entries, &BTreeMap::new());
        self.tensors.values().for_each(|tensor| file.extend_from_slice(&tensor.bytes));
        std::fs::write(folder.join("model.safetensors"), file).expect("a writable folder");
        std::fs::write(folder.join("config.json"), self.config.to_string()).expect("a writable folder");
    }
}

/// Folders of one test.
pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The model in both formats.
    pub(crate) fn both(&self, name: &str, model: &Model) -> [PathBuf; 2] {
        let [hf, mc] = ["hf", "mc"].map(|format| self.path(&format!("{name}.{format}")));
        model.write(&hf);
        let options = ImportOptions {
            layout: Layout { tp: 2, pp: 1, ep: 2, etp: 1 },
            make_vocab_size_divisible_by: Some(1024 + 512),
            ..ImportOptions::new(SpecName::Te)
        };
        let plan = plan_import(&hf, &mc, &options).expect("a model that converts");
        execute(&plan, &RunOptions { threads: 2, force: false }, &Silent).expect("room on the disk");
        [hf, mc]
    }
}

pub(crate) fn examine(folder: &Path, against: Option<&Path>) -> DoctorReport {
    doctor(folder, against, 2, &Silent).expect("a checkpoint that can be examined")
}

pub(crate) fn found(report: &DoctorReport) -> Vec<(Severity, Check)> {
    report.findings.iter().map(|finding| (finding.severity, finding.check)).collect()
}

/// Examines the model after `damage`, in both formats: it must have these findings and the note of the sound model, and
/// the first is returned, of either format.
pub(crate) fn only(expected: &[(Severity, Check)], damage: impl FnOnce(&mut Model)) -> [Finding; 2] {
    let mut model = Model::sound();
    damage(&mut model);
    let dir = Dir::new();
    let mut expected = [expected, &[NOTE]].concat();
    expected.sort_unstable();
    dir.both("damaged", &model).map(|folder| {
        let report = examine(&folder, None);
        assert_eq!(found(&report), expected, "{:#?}", report.findings);
        report.findings.into_iter().next().expect("at least the note")
    })
}
