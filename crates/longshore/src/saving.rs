//! Passes over a model that go on after an interruption ([`longshore_infer::resume`]), and what the user hears of it.

use crate::cli::run::SaveArgs;
use crate::report::Report;
use anyhow::Result;
use longshore_ckpt::fs;
use longshore_infer::error::{Error, Result as EngineResult};
use longshore_infer::resume::{self, Place, Resumed, SavedPass, Saving};
use std::path::PathBuf;
use std::time::Duration;

/// A pass that is saved now and then, unless the disk does not let it.
pub(crate) struct Saver<'a> {
    saved: Option<SavedPass>,
    report: &'a Report,
}

impl<'a> Saver<'a> {
    /// At this place, under this key. Another run there is an error; whatever else is wrong with the folder is not.
    pub(crate) fn open(place: Place<'_>, key: &str, args: &SaveArgs, report: &'a Report) -> Result<Self> {
        let saved = match SavedPass::open(place, key, Duration::from_secs(u64::from(args.save_every))) {
            Ok((saved, removed)) => {
                say_removed(&removed, report);
                Some(saved)
            }
            Err(Error::Checkpoint(error)) if fs::is_held(&error) => return Err(error.into()),
            Err(error) => {
                report.note("Warning", &format!("an interruption will cost all that is done: {error}"));
                None
            }
        };
        Ok(Self { saved, report })
    }

    /// What an earlier run has found in the layers that are done, as `load` takes them over.
    pub(crate) fn resume<T>(
        &mut self,
        n_layers: usize,
        load: impl FnOnce(&mut SavedPass) -> EngineResult<Resumed<T>>,
    ) -> Result<Vec<T>> {
        Ok(match self.saved.as_mut().map_or(Ok(Resumed::Nothing), load)? {
            Resumed::Nothing => Vec::new(),
            Resumed::Refused(why) => {
                self.report.note("Restarted", &format!("an interrupted run cannot be resumed: {why}"));
                Vec::new()
            }
            Resumed::Layers(found) => {
                self.report.status("Resumed", &format!("after layer {} of {n_layers}", found.len()));
                found
            }
        })
    }

    /// After a layer.
    pub(crate) fn save(&mut self, save: impl FnOnce(&mut SavedPass) -> Saving) {
        if let Some(Saving::Failed(error)) = self.saved.as_mut().map(save) {
            self.report.note("Warning", &format!("an interruption will cost what is done from here on: {error}"));
        }
    }

    /// Once the result is safe.
    pub(crate) fn discard(self) {
        let Some(saved) = self.saved else { return };
        let path = saved.path().to_owned();
        if let Err(error) = saved.discard() {
            self.report.note("Warning", &format!("`{}` is left: {error}", path.display()));
        }
    }
}

/// Removes what interrupted runs have left at a place where nothing will be saved. Another run there is an error.
pub(crate) fn remove_others(place: Place<'_>, report: &Report) -> Result<()> {
    match resume::remove_others(place, None) {
        Ok(removed) => say_removed(&removed, report),
        Err(Error::Checkpoint(error)) if fs::is_held(&error) => return Err(error.into()),
        Err(error) => report.note("Warning", &format!("an interrupted run is left: {error}")),
    }
    Ok(())
}

/// That interrupted runs were removed, with which nobody will go on.
fn say_removed(removed: &[PathBuf], report: &Report) {
    for path in removed {
        let what = "is of an interrupted run with another source, other samples or options";
        report.note("Removed", &format!("`{}`, which {what}", path.display()));
    }
}
