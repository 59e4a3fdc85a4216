//! The dumps of `make.py`.

use std::sync::LazyLock;

use longshore_quant::config::{Buffer, Plain, QuantConfig};
use serde_json::Value;

/// `choices.json`.
pub(crate) static CHOICES: LazyLock<Value> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/config/choices.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
});

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

pub(crate) fn index(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

/// A value as `make.py` writes it.
pub(crate) fn plain(value: &Value) -> Plain {
    match value {
        Value::Null => Plain::None,
        Value::Bool(value) => Plain::Bool(*value),
        Value::Number(n) => n.as_i64().map_or_else(|| Plain::Float(n.as_f64().unwrap()), Plain::Int),
        Value::String(text) => Plain::str(text),
        Value::Array(items) => Plain::List(items.iter().map(plain).collect()),
        Value::Object(object) => {
            let (kind, value) = object.iter().next().unwrap();
            match kind.as_str() {
                "t" => Plain::Tuple(list(value).iter().map(plain).collect()),
                "d" => Plain::Dict(list(value).iter().map(|pair| (plain(&pair[0]), plain(&pair[1]))).collect()),
                "size" => Plain::Size(list(value).iter().map(|n| n.as_u64().unwrap()).collect()),
                "dtype" => Plain::Dtype(value.as_str().unwrap().to_owned()),
                "tensor" => Plain::str("a tensor"),
                kind => panic!("{kind}"),
            }
        }
    }
}

/// The config of the mode `quantize` that the dump of a config stands for; `attributes` are the shared ones.
pub(crate) fn quantize_mode(dumped: &Value, attributes: &Value) -> Plain {
    let shared = |number: &Value| plain(&attributes[index(number)]);
    let entries = list(&dumped["entries"]).iter().map(|entry| {
        let cfg = match &entry[2] {
            Value::Null => Plain::None,
            Value::Array(all) => Plain::List(all.iter().map(shared).collect()),
            one => shared(one),
        };
        let named = [("quantizer_name", plain(&entry[0])), ("parent_class", plain(&entry[1]))];
        Plain::dict(named.into_iter().chain([("cfg", cfg), ("enable", plain(&entry[3]))]))
    });
    Plain::dict([
        ("quant_cfg", Plain::List(entries.collect())),
        ("algorithm", plain(&dumped["algorithm"])),
        ("effective_bits", plain(&dumped["effective_bits"])),
    ])
}

/// Compares all that is dumped of a config.
pub(crate) fn compare(config: &QuantConfig, dumped: &Value, attributes: &Value) {
    let name = &config.name;
    assert_eq!(config.dump(), quantize_mode(dumped, attributes), "{name}");
    let modes: Vec<_> = config.algorithm.iter().map(longshore_quant::config::Algorithm::mode).collect();
    let expected: Vec<_> =
        list(&dumped["modes"]).iter().map(|mode| (mode[0].as_str().unwrap().to_owned(), plain(&mode[1]))).collect();
    assert_eq!(modes, expected, "{name}");
    assert_eq!(config.need_calibration(), dumped["need_calibration"].as_bool().unwrap(), "{name}");
}

/// A dict with its keys in order.
pub(crate) fn sorted(dict: Plain) -> Plain {
    let Plain::Dict(mut entries) = dict else { panic!("not a dict") };
    entries.sort_by_key(|(key, _)| format!("{key:?}"));
    Plain::Dict(entries)
}

/// The buffers of a quantizer's state.
pub(crate) fn buffers(state: &Plain) -> Vec<Buffer> {
    let Some(Plain::Dict(all)) = state.get("_pytorch_state_metadata").and_then(|m| m.get("buffers")) else {
        panic!("no buffers")
    };
    let buffer = |(name, tensor): &(Plain, Plain)| match (name, tensor.get("shape"), tensor.get("dtype")) {
        (Plain::Str(name), Some(Plain::Size(shape)), Some(Plain::Dtype(dtype))) => {
            Buffer { name: name.clone(), shape: shape.clone(), dtype: dtype.clone() }
        }
        other => panic!("{other:?}"),
    };
    all.iter().map(buffer).collect()
}
