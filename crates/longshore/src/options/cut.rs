//! The options of `cut`.

use super::{Choices, Env, WriteOptions, mtp_choice};
use crate::cli::cut::CutArgs;
use crate::extra_args::Extra;
use longshore_convert::CutOptions;

/// `cut`, resolved. No variable has a say in it.
pub(crate) fn cut(args: &CutArgs, env: &Env) -> WriteOptions<CutOptions> {
    let w = &args.output;
    let mut c = Choices { env, list: Vec::new() };
    let shown = args.layers.as_ref().map(ToString::to_string);
    c.pick("layers", shown.map(Some), None, None);
    let options = CutOptions {
        layers: args.layers.clone(),
        experts: c.pick("experts", args.experts.map(Some), None, None),
        mtp: c.pick("mtp", args.mtp.map(mtp_choice), None, longshore_convert::MtpChoice::Keep),
        allow_unmapped: c.pick("allow-unmapped", w.allow_unmapped.then_some(true), None, false),
        max_file_size: c.pick("max-file-size", w.max_file_size.map(Some), None, None),
    };
    c.finish(options, w, Extra::default())
}
