//! The four groups in which lm-evaluation-harness reports the subjects: the `tag` of each file in
//! `lm_eval/tasks/mmlu/default`.

use serde::Serialize;

/// A group of subjects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Science, technology, engineering, mathematics.
    Stem,
    /// History, law, philosophy.
    Humanities,
    /// Economics, politics, psychology.
    SocialSciences,
    /// Business, health, the rest.
    Other,
}

impl Category {
    /// All four, in the order of the harness' name list.
    pub const ALL: [Self; 4] = [Self::Stem, Self::Humanities, Self::SocialSciences, Self::Other];

    /// The harness' word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stem => "stem",
            Self::Humanities => "humanities",
            Self::SocialSciences => "social_sciences",
            Self::Other => "other",
        }
    }
}

/// The category of a subject; `None` for one that MMLU does not have.
pub fn category(subject: &str) -> Option<Category> {
    CATEGORIES.iter().find(|(_, subjects)| subjects.contains(&subject)).map(|&(category, _)| category)
}

/// The subjects of each category.
pub const CATEGORIES: [(Category, &[&str]); 4] = [
    (
        Category::Stem,
        &[
            "abstract_algebra",
            "anatomy",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
    (
        Category::Humanities,
        &[
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
    (
        Category::SocialSciences,
        &[
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        Category::Other,
        &[
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
];
