//! The attributes of a quantizer from the dict that ModelOpt pickles of it.

use longshore_ckpt::torch_dist::pickle::View;
use longshore_quant::{Attributes, Bias, BlockSizes, NumBits};

/// Entries of a dict of a quantizer; ModelOpt's have 30.
const MAX_ENTRIES: usize = 256;
/// Characters of a value that a message shows.
const MAX_TEXT: usize = 120;

/// What a quantizer's state says, but for the values of its tensors.
#[derive(Debug, PartialEq)]
pub(super) struct State {
    pub attributes: Attributes,
    /// Names of the tensors that it has: `_amax`.
    pub buffers: Vec<String>,
}

/// Reads the state of one quantizer (one stage of a sequence).
pub(super) fn state(view: View<'_>) -> Result<State, String> {
    let entries = view.entries().ok_or_else(|| format!("its state is {}", view.kind()))?;
    if entries.len() > MAX_ENTRIES {
        return Err(format!("its state has {} entries", entries.len()));
    }
    let dynamic = flag(view, "_dynamic", false)?;
    let axis = view.get("_axis").filter(|v| !v.is_none());
    let mut block_sizes = given(view, "_block_sizes").map(blocks).transpose()?;
    let axis = match axis.map(|v| (v.as_i64(), v.items())) {
        None => None,
        Some((Some(axis), _)) => Some(small(axis, "_axis")?),
        // Static blocks are seen as rows or squares of their own once they have an amax: these are not the config's axes.
        Some((None, Some(_))) if block_sizes.is_some() => None,
        // All axes but the last, found from `{-1: None}` when the first tensor came: the tokens.
        Some((None, Some(items))) if dynamic && items.clone().zip(0..).all(|(v, i)| v.as_i64() == Some(i)) => {
            block_sizes = Some(BlockSizes { axes: vec![(-1, None)], ..BlockSizes::default() });
            None
        }
        _ => return Err(unsupported(view, "_axis")),
    };
    let defaults = Attributes::default();
    let attributes = Attributes {
        enable: !flag(view, "_disabled", true)?,
        num_bits: view.get("_num_bits").and_then(num_bits).ok_or_else(|| unsupported(view, "_num_bits"))?,
        effective_bits: number(view, "_effective_bits")?,
        axis,
        fake_quant: flag(view, "_fake_quant", defaults.fake_quant)?,
        unsigned: flag(view, "_unsigned", defaults.unsigned)?,
        narrow_range: flag(view, "_narrow_range", defaults.narrow_range)?,
        dynamic,
        block_sizes,
        bias: given(view, "_bias").map(bias).transpose()?,
        rotate: flag(view, "_rotate", defaults.rotate)?,
        pass_through_bwd: flag(view, "_pass_through_bwd", defaults.pass_through_bwd)?,
        use_constant_amax: flag(view, "_use_constant_amax", defaults.use_constant_amax)?,
        constant_amax: number(view, "_constant_amax")?,
        ..defaults
    };
    let buffers = view.get("_pytorch_state_metadata").and_then(|m| m.get("buffers")).and_then(View::entries);
    let buffers = buffers.filter(|b| b.len() <= MAX_ENTRIES).into_iter().flatten();
    let buffers = buffers.filter_map(|(name, _)| name.as_str().map(str::to_owned)).collect();
    Ok(State { attributes, buffers })
}

fn unsupported(view: View<'_>, name: &str) -> String {
    view.get(name).map_or_else(|| format!("it has no `{name}`"), |value| refusal(name, value))
}

fn refusal(name: &str, value: View<'_>) -> String {
    let text: String = value.to_text().chars().take(MAX_TEXT).collect();
    format!("`{name}` {text} is not supported")
}

/// The value of a key, unless it is `None`.
fn given<'a>(view: View<'a>, name: &str) -> Option<View<'a>> {
    view.get(name).filter(|v| !v.is_none())
}

fn flag(view: View<'_>, name: &str, default: bool) -> Result<bool, String> {
    let Some(value) = view.get(name) else { return Ok(default) };
    value.as_bool().ok_or_else(|| unsupported(view, name))
}

fn number(view: View<'_>, name: &str) -> Result<Option<f64>, String> {
    let Some(value) = given(view, name) else { return Ok(None) };
    let whole = || value.as_i64().map(|v| v as f64);
    value.as_f64().or_else(whole).map(Some).ok_or_else(|| unsupported(view, name))
}

fn small(value: i64, name: &str) -> Result<i32, String> {
    i32::try_from(value).map_err(|_| format!("`{name}` {value} is not supported"))
}

fn num_bits(view: View<'_>) -> Option<NumBits> {
    let byte = |v: View<'_>| u8::try_from(v.as_i64()?).ok();
    if let Some(bits) = byte(view) {
        return Some(NumBits::Int(bits));
    }
    let mut items = view.items().filter(|items| items.len() == 2)?;
    Some(NumBits::Float(byte(items.next()?)?, byte(items.next()?)?))
}

fn is_dynamic(view: View<'_>) -> Option<bool> {
    match view.as_str()? {
        "dynamic" => Some(true),
        "static" => Some(false),
        _ => None,
    }
}

fn blocks(view: View<'_>) -> Result<BlockSizes, String> {
    let refuse = || refusal("_block_sizes", view);
    let mut out = BlockSizes::default();
    for (key, value) in view.entries().filter(|e| e.len() <= MAX_ENTRIES).ok_or_else(refuse)? {
        if let Some(axis) = key.as_i64() {
            let block =
                (!value.is_none()).then(|| value.as_u64().and_then(|v| u32::try_from(v).ok()).ok_or_else(refuse));
            out.axes.push((small(axis, "_block_sizes")?, block.transpose()?));
            continue;
        }
        match key.as_str() {
            // A config that names a key without a value says as much as one that does not.
            Some("type" | "scale_bits" | "four_over_six") if value.is_none() => {}
            Some("type") => out.dynamic = Some(is_dynamic(value).ok_or_else(refuse)?),
            Some("scale_bits") => out.scale_bits = Some(num_bits(value).ok_or_else(refuse)?),
            Some("four_over_six") => {
                let whole = value.as_i64().map(|v| v != 0);
                out.four_over_six = Some(value.as_bool().or(whole).ok_or_else(refuse)?);
            }
            _ => return Err(refuse()),
        }
    }
    Ok(out)
}

fn bias(view: View<'_>) -> Result<Bias, String> {
    let refuse = || refusal("_bias", view);
    let mut out = Bias::default();
    for (key, value) in view.entries().filter(|e| e.len() <= MAX_ENTRIES).ok_or_else(refuse)? {
        match (key.as_i64(), key.as_str()) {
            (Some(axis), _) if value.is_none() => out.axes.push(small(axis, "_bias")?),
            (_, Some("type")) => out.dynamic = Some(is_dynamic(value).ok_or_else(refuse)?),
            (_, Some("method")) => out.method = Some(value.as_str().ok_or_else(refuse)?.to_owned()),
            _ => return Err(refuse()),
        }
    }
    Ok(out)
}
