//! What a search has found in a layer, as an interrupted calibration keeps it: exact, and long arrays in two digits a byte.

use longshore_convert::quantized::{BlockShares, Calibrated, QuantLinear, Quantization, WeightAmax};
use longshore_quant::Scheme;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was found for the linears of a layer, by module.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Kept(BTreeMap<String, Linear>);

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Linear {
    /// The input's magnitude.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input: Option<Floats>,
    /// The weight's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<Floats>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pre_quant_scale: Option<Floats>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clipped: Option<(Floats, Bytes)>,
}

impl Kept {
    /// What was found in one layer.
    pub(super) fn of(found: &Calibrated) -> Self {
        let mut by_module: BTreeMap<String, Linear> = BTreeMap::new();
        let mut entry = |module: &String, set: &dyn Fn(&mut Linear)| set(by_module.entry(module.clone()).or_default());
        for (module, &amax) in &found.inputs {
            entry(module, &|linear| linear.input = Some(Floats(Arc::new([amax]))));
        }
        for ((module, _), amax) in &found.weights {
            if let WeightAmax::Tensor(amax) = *amax {
                entry(module, &|linear| linear.weight = Some(Floats(Arc::new([amax]))));
            }
        }
        for (module, scale) in &found.pre_quant_scales {
            entry(module, &|linear| linear.pre_quant_scale = Some(Floats(Arc::clone(scale))));
        }
        for (module, BlockShares { shares, index }) in &found.clipped {
            entry(module, &|linear| linear.clipped = Some((Floats(Arc::clone(shares)), Bytes(Arc::clone(index)))));
        }
        Self(by_module)
    }

    /// Whether it can be of this layer.
    pub(super) fn fits(&self, layer: usize, quantization: &Quantization) -> bool {
        let prefix = format!("decoder.layers.{layer}.");
        let linears = quantization.linears.iter().filter(|q| q.linear.module.starts_with(&prefix));
        let linears: BTreeMap<&str, &QuantLinear> = linears.map(|q| (q.linear.module.as_str(), q)).collect();
        self.0.iter().all(|(module, found)| linears.get(module.as_str()).is_some_and(|q| found.fits(q)))
    }

    /// Adds it to what was found before.
    pub(super) fn append_to(self, into: &mut Calibrated) {
        for (module, found) in self.0 {
            if let Some(&amax) = found.input.as_ref().and_then(|input| input.0.first()) {
                into.inputs.insert(module.clone(), amax);
            }
            if let Some(&amax) = found.weight.as_ref().and_then(|weight| weight.0.first()) {
                into.weights.insert((module.clone(), 0), WeightAmax::Tensor(amax));
            }
            if let Some(scale) = found.pre_quant_scale {
                into.pre_quant_scales.insert(module.clone(), scale.0);
            }
            if let Some((shares, index)) = found.clipped {
                into.clipped.insert(module, BlockShares { shares: shares.0, index: index.0 });
            }
        }
    }
}

impl Linear {
    fn fits(&self, q: &QuantLinear) -> bool {
        let len = |floats: &Option<Floats>, len: u64| floats.as_ref().is_none_or(|f| f.0.len() as u64 == len);
        let blocks = match q.weight_schemes.first() {
            Some(Scheme::Int4 { block }) => q.linear.rows * (q.linear.cols / *block as u64),
            _ => 0,
        };
        let clipped = self.clipped.as_ref().is_none_or(|(shares, index)| {
            index.0.len() as u64 == blocks && index.0.iter().all(|&at| usize::from(at) < shares.0.len())
        });
        len(&self.input, 1) && len(&self.weight, 1) && len(&self.pre_quant_scale, q.linear.cols) && clipped
    }
}

/// Floats by their bits, so that no value is lost, infinite ones included.
#[derive(Debug, PartialEq)]
struct Floats(Arc<[f32]>);

impl Serialize for Floats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&digits(self.0.iter().flat_map(|x| x.to_le_bytes())))
    }
}

impl<'de> Deserialize<'de> for Floats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?.0;
        let (floats, []) = bytes.as_chunks() else { return Err(D::Error::custom("expected whole floats")) };
        Ok(Self(floats.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()))
    }
}

#[derive(Debug, PartialEq)]
struct Bytes(Arc<[u8]>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&digits(self.0.iter().copied()))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
            return Err(D::Error::custom("expected two digits a byte"));
        };
        let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
        let byte = |pair: &[u8; 2]| Some(value(pair[0])? << 4 | value(pair[1])?);
        let bytes: Option<Arc<[u8]>> = pairs.iter().map(byte).collect();
        bytes.map(Self).ok_or_else(|| D::Error::custom("expected hexadecimal digits"))
    }
}

/// Two hexadecimal digits a byte.
fn digits(bytes: impl Iterator<Item = u8>) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let pair = |byte: u8| [byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)]));
    bytes.flat_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_convert::model::Model;
    use longshore_convert::quantized::linear::Naming;
    use longshore_quant::config::QuantConfig;
    use std::path::Path;

    fn found(q: &QuantLinear) -> Calibrated {
        let module = || q.linear.module.clone();
        let scale = (0..q.linear.cols).map(|i| 0.1 / (i as f32 - 7.0)).collect();
        let blocks = (q.linear.rows * (q.linear.cols / 128)) as usize;
        let index = (0..blocks).map(|i| (i % 2) as u8).collect();
        Calibrated {
            inputs: [(module(), f32::INFINITY)].into(),
            weights: [((module(), 0), WeightAmax::Tensor(f32::MIN_POSITIVE / 4.0))].into(),
            pre_quant_scales: [(module(), scale)].into(),
            clipped: [(module(), BlockShares { shares: Arc::new([0.55, 1.0]), index })].into(),
            ..Calibrated::default()
        }
    }

    /// The bundled model under AWQ, and a linear of its first layer.
    fn quantization() -> Quantization {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nemotron-h-10m");
        let model = Model::from_folder(&folder).unwrap();
        let config = QuantConfig::named("INT4_AWQ_CFG").unwrap();
        Quantization::decide(&model, Naming::HuggingFace, &config).unwrap()
    }

    #[test]
    fn everything_comes_back_to_the_bit() {
        let quantization = quantization();
        let found = found(&quantization.linears[0]);
        let json = serde_json::to_string(&Kept::of(&found)).unwrap();
        let kept: Kept = serde_json::from_str(&json).unwrap();
        assert!(kept.fits(0, &quantization));
        let mut back = Calibrated::default();
        kept.append_to(&mut back);
        assert_eq!(format!("{back:?}"), format!("{found:?}"));
    }

    #[test]
    fn what_is_of_another_layer_or_shape_does_not_fit() {
        let quantization = quantization();
        let q = &quantization.linears[0];
        let refused = |change: &dyn Fn(&mut Calibrated)| {
            let mut found = found(q);
            change(&mut found);
            !Kept::of(&found).fits(0, &quantization)
        };
        let module = &q.linear.module;
        assert!(!refused(&|_| {}));
        assert!(!Kept::of(&found(q)).fits(1, &quantization));
        assert!(refused(&|c| c.pre_quant_scales = [(module.clone(), Arc::from([1.0]))].into()));
        assert!(refused(&|c| c.inputs = [(format!("{module}x"), 1.0)].into()));
        for (shares, index) in [(vec![1.0], None), (vec![0.5, 1.0], Some(vec![0; 3]))] {
            assert!(refused(&|c| {
                let clipped = c.clipped.get_mut(module).unwrap();
                clipped.shares = shares.clone().into();
                clipped.index = index.clone().map_or_else(|| Arc::clone(&clipped.index), Arc::from);
            }));
        }
        for text in ["\"0\"", "\"0g\"", "\"é\"", "\"000000\"", "7"] {
            assert!(serde_json::from_str::<Floats>(text).is_err(), "{text}");
        }
    }
}
