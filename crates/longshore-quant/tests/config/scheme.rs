//! From attributes to schemes.

use longshore_quant::config::{QuantConfig, choices};
use longshore_quant::{Attributes, Bias, BlockSizes, Error, Granularity, MxElement, NumBits, Scheme};

fn schemes(name: &str, entry: usize) -> Vec<Scheme> {
    Attributes::schemes(&QuantConfig::named(name).unwrap().entries[entry].cfg).unwrap()
}

#[test]
fn the_formats_of_the_configs_are_known() {
    use Granularity::{Channel, Square, Tensor, Token};
    for (name, weight, input) in [
        ("fp8", vec![Scheme::Fp8(Tensor)], Some(Scheme::Fp8(Tensor))),
        ("fp8_pc_pt", vec![Scheme::Fp8(Channel)], Some(Scheme::Fp8(Token))),
        ("fp8_pb_wo", vec![Scheme::Fp8(Square(128))], None),
        ("int8", vec![Scheme::Int8(Channel)], Some(Scheme::Int8(Tensor))),
        ("int4_awq", vec![Scheme::Int4 { block: 128 }], None),
        ("w4a8_awq", vec![Scheme::Int4 { block: 128 }, Scheme::Fp8(Tensor)], Some(Scheme::Fp8(Tensor))),
        ("nvfp4", vec![Scheme::Nvfp4 { block: 16 }], Some(Scheme::Nvfp4 { block: 16 })),
        ("w4a8_nvfp4_fp8", vec![Scheme::Nvfp4 { block: 32 }], Some(Scheme::Fp8(Tensor))),
        ("nvfp4_mse", vec![Scheme::Nvfp4Static { four_over_six: false }], Some(Scheme::Nvfp4 { block: 16 })),
        ("nvfp4_4o6", vec![Scheme::Nvfp4Static { four_over_six: true }], Some(Scheme::Nvfp4 { block: 16 })),
        ("mxfp8", vec![Scheme::Mx(MxElement::E4m3)], Some(Scheme::Mx(MxElement::E4m3))),
        ("mxfp6", vec![Scheme::Mx(MxElement::E3m2)], Some(Scheme::Mx(MxElement::E3m2))),
        ("mxfp4", vec![Scheme::Mx(MxElement::E2m1)], Some(Scheme::Mx(MxElement::E2m1))),
        ("mxint8", vec![Scheme::Mx(MxElement::Int8)], Some(Scheme::Mx(MxElement::Int8))),
    ] {
        assert_eq!(schemes(name, 1), weight, "{name}");
        assert_eq!(schemes(name, 2), input.into_iter().collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn all_configs_but_those_with_an_offset_or_a_rotation_are_computed() {
    let refused = |name: &str| {
        let config = QuantConfig::named(name).unwrap();
        config.entries.iter().any(|entry| Attributes::schemes(&entry.cfg).is_err())
    };
    let refused: Vec<_> = choices().iter().map(|c| c.name).filter(|name| refused(name)).collect();
    assert_eq!(refused, ["FP8_AFFINE_KV_CFG", "NVFP4_AFFINE_KV_CFG", "NVFP4_KV_ROTATE_CFG"]);
}

#[test]
fn a_quantizer_that_is_off_has_no_scheme_whatever_its_format() {
    let odd = Attributes { num_bits: NumBits::Int(5), ..Attributes::default() };
    assert_eq!(Attributes { enable: false, ..odd.clone() }.scheme(), Ok(None));
    assert!(odd.scheme().is_err());
    assert!(Attributes { enable: false, rotate: true, ..odd }.scheme().is_err());
}

#[test]
fn other_combinations_are_refused_with_what_they_are() {
    let fp8 = Attributes { num_bits: NumBits::Float(4, 3), ..Attributes::default() };
    let blocks = |axes: &[(i32, Option<u32>)], dynamic| BlockSizes {
        axes: axes.to_vec(),
        dynamic: Some(dynamic),
        ..BlockSizes::default()
    };
    let e4m3 = Some(NumBits::Float(4, 3));
    let nvfp4 = |block, dynamic| Attributes {
        num_bits: NumBits::Float(2, 1),
        block_sizes: Some(BlockSizes { scale_bits: e4m3, ..blocks(&[(-1, Some(block))], dynamic) }),
        ..Attributes::default()
    };
    assert!(nvfp4(32, true).scheme().is_ok());
    let over = |attributes: Attributes| {
        let blocks = attributes.block_sizes.clone().unwrap();
        Attributes { block_sizes: Some(BlockSizes { four_over_six: Some(true), ..blocks }), ..attributes }
    };
    for attributes in [
        Attributes { axis: Some(1), ..fp8.clone() },
        Attributes { dynamic: true, ..fp8.clone() },
        Attributes { unsigned: true, ..fp8.clone() },
        Attributes { narrow_range: true, ..fp8.clone() },
        Attributes { calibrator: "histogram".into(), ..fp8.clone() },
        Attributes { bias: Some(Bias::default()), ..fp8.clone() },
        Attributes { block_sizes: Some(blocks(&[(-1, Some(128))], false)), ..fp8.clone() },
        Attributes { block_sizes: Some(blocks(&[(-1, Some(128)), (-2, Some(64))], false)), ..fp8.clone() },
        Attributes { block_sizes: Some(blocks(&[(-1, Some(128)), (-1, Some(128))], false)), ..fp8.clone() },
        Attributes { num_bits: NumBits::Int(4), ..Attributes::default() },
        Attributes {
            num_bits: NumBits::Int(4),
            block_sizes: Some(blocks(&[(-1, Some(128))], true)),
            ..Attributes::default()
        },
        Attributes {
            num_bits: NumBits::Int(4),
            block_sizes: Some(blocks(&[(0, Some(128))], false)),
            ..Attributes::default()
        },
        nvfp4(8, true),
        nvfp4(32, false),
        over(nvfp4(16, true)),
    ] {
        assert!(matches!(attributes.scheme(), Err(Error::Unsupported(_))), "{attributes:?}");
    }
    assert!(over(nvfp4(16, false)).scheme().is_ok());
    let error = nvfp4(32, false).scheme().unwrap_err().to_string();
    assert_eq!(
        error,
        "unsupported quantizer: this combination \
         (num_bits (2, 1), block_sizes {-1: 32, type: static, scale_bits: (4, 3)})"
    );
    let two = [fp8.clone(), fp8];
    assert!(Attributes::schemes(&two).is_err());
}
