//! What stops a conversion: problems of the plan, all together, or one failure while running.

use longshore_ckpt::Dtype;
use serde::Serialize;
use std::path::PathBuf;

/// One thing that is wrong with a plan. `rule` is the line of the architecture's table that says what is right.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are the facts that the variants name")]
pub enum Problem {
    /// A tensor that the architecture names is not in the source.
    Missing { tensor: String, rule: String },
    /// A tensor of the source that no rule names.
    Unmapped { tensor: String, file: String },
    /// A tensor has another shape than the config says.
    Shape { tensor: String, file: String, expected: Vec<u64>, found: Vec<u64>, rule: String },
    /// A tensor has a dtype that cannot be converted as asked.
    Dtype { tensor: String, file: String, found: Dtype, what: String, rule: String },
    /// The chunks or rules of a tensor overlap or leave holes.
    Cover { tensor: String, what: String },
    /// A tensor's stored bytes are not what its entry promises.
    Damaged { tensor: String, file: String, what: String },
    /// A config field that cannot be used.
    Config { file: String, field: String, what: String },
    /// Values that would be lost: surplus vocabulary rows that are not zero, numbers that the target dtype cannot hold.
    Loss { tensor: String, what: String },
    /// A weight that cannot be quantized as asked.
    Quantize { tensor: String, what: String },
    /// A config that promises multi-token prediction, and a source without a tensor of it.
    Mtp { config: String, depth: u64 },
    /// An option that does not fit the model.
    Option { option: String, what: String },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { tensor, rule } => write!(f, "missing    {tensor}\n           rule: {rule}"),
            Self::Unmapped { tensor, file } => write!(f, "unmapped   {tensor}  in `{file}`: no rule names it"),
            Self::Shape { tensor, file, expected, found, rule } => write!(
                f,
                "shape      {tensor}  in `{file}`: expected {expected:?}, found {found:?}\n           rule: {rule}"
            ),
            Self::Dtype { tensor, file, found, what, rule } => {
                write!(f, "dtype      {tensor}  in `{file}`: {found}, {what}\n           rule: {rule}")
            }
            Self::Cover { tensor, what } => write!(f, "cover      {tensor}  {what}"),
            Self::Damaged { tensor, file, what } if tensor.is_empty() && file.is_empty() => {
                write!(f, "damaged    {what}")
            }
            Self::Damaged { tensor, file, what } if tensor.is_empty() => write!(f, "damaged    `{file}`: {what}"),
            Self::Damaged { tensor, file, what } if file.is_empty() => write!(f, "damaged    {tensor}  {what}"),
            Self::Damaged { tensor, file, what } => write!(f, "damaged    {tensor}  in `{file}`: {what}"),
            Self::Config { file, field, what } => write!(f, "config     `{field}` in `{file}`: {what}"),
            Self::Loss { tensor, what } => write!(f, "loss       {tensor}  {what}"),
            Self::Quantize { tensor, what } => write!(f, "quantize   {tensor}  {what}"),
            Self::Mtp { config, depth } => {
                write!(f, "mtp        `{config}` says MTP of depth {depth}, the source holds no tensor of it")
            }
            Self::Option { option, what } => write!(f, "option     `{option}`: {what}"),
        }
    }
}

/// Every way in which planning or running fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] longshore_ckpt::Error),
    /// The plan is refused; nothing was written.
    #[error("{} {}{}", .0.len(), if .0.len() == 1 { "problem" } else { "problems" }, list(.0))]
    Refused(Vec<Problem>),
    /// The source is no model that longshore knows.
    #[error("`{}`: {what}", path.display())]
    Model {
        /// Where the model was described.
        path: PathBuf,
        /// What is not known.
        what: String,
    },
    /// The destination cannot be written as asked.
    #[error("destination `{}`: {what}", path.display())]
    Destination {
        /// The destination.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// A source file is not what it was when the plan was made.
    #[error("source `{}` changed while it was read: {what}", path.display())]
    SourceChanged {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// The caller asked to stop. The staging folder holds what was done.
    #[error("interrupted; `{}` holds the finished files, the same command resumes", staging.display())]
    Interrupted {
        /// The staging folder.
        staging: PathBuf,
    },
    /// The caller asked to stop a run that only reads.
    #[error("interrupted")]
    Stopped,
}

fn list(problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |text, p| text + "\n  " + &p.to_string())
}
