//! Small IEEE-like floats as bits, for the watchdog's decay and for programs without the `half` crate.

/// Layout of a float of at most 16 bits.
pub(crate) struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
    /// Whether the greatest exponent means infinity and NaN (else only all ones are NaN, as in E4M3FN).
    has_infinity: bool,
}

pub(crate) const F16: Format = Format { exponent_bits: 5, mantissa_bits: 10, has_infinity: true };
pub(crate) const BF16: Format = Format { exponent_bits: 8, mantissa_bits: 7, has_infinity: true };
pub(crate) const F8_E4M3FN: Format = Format { exponent_bits: 4, mantissa_bits: 3, has_infinity: false };
pub(crate) const F8_E5M2: Format = Format { exponent_bits: 5, mantissa_bits: 2, has_infinity: true };

impl Format {
    fn bias(&self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    fn exponent_mask(&self) -> u32 {
        (1 << self.exponent_bits) - 1
    }

    fn mantissa_mask(&self) -> u32 {
        (1 << self.mantissa_bits) - 1
    }

    /// Exact: every value of these formats is an `f32`.
    pub(crate) fn decode(&self, bits: u16) -> f32 {
        let bits = u32::from(bits);
        let sign = if bits >> (self.exponent_bits + self.mantissa_bits) & 1 == 1 { -1.0 } else { 1.0 };
        let exponent = bits >> self.mantissa_bits & self.exponent_mask();
        let mantissa = bits & self.mantissa_mask();
        if exponent == self.exponent_mask() {
            if self.has_infinity {
                return if mantissa == 0 { sign * f32::INFINITY } else { f32::NAN.copysign(sign) };
            }
            if mantissa == self.mantissa_mask() {
                return f32::NAN.copysign(sign);
            }
        }
        let scale = |power: i32| 2f64.powi(power - self.bias() - self.mantissa_bits as i32);
        let magnitude = if exponent == 0 {
            f64::from(mantissa) * scale(1)
        } else {
            f64::from(mantissa | 1 << self.mantissa_bits) * scale(exponent as i32)
        };
        sign * magnitude as f32
    }

    /// Rounds to nearest, ties to even; too large becomes infinity, or NaN where the format has none.
    pub(crate) fn encode(&self, value: f64) -> u16 {
        let sign = u32::from(value.is_sign_negative()) << (self.exponent_bits + self.mantissa_bits);
        let top = self.exponent_mask() << self.mantissa_bits;
        let overflow = if self.has_infinity { top } else { top | self.mantissa_mask() };
        let magnitude = value.abs();
        let bits = if value.is_nan() {
            if self.has_infinity {
                top | 1 << (self.mantissa_bits - 1)
            } else {
                overflow
            }
        } else if magnitude.is_infinite() {
            overflow
        } else if magnitude == 0.0 {
            0
        } else {
            // In units of the last place the magnitude is a small number, exact in f64.
            let exponent = (magnitude.log2().floor() as i32).max(1 - self.bias());
            let ulps = magnitude / 2f64.powi(exponent - self.mantissa_bits as i32);
            let rounded = round_ties_even(ulps);
            // A carry out of the mantissa moves into the exponent by itself; the implicit one is taken off.
            let biased = (exponent + self.bias()) as u32;
            let bits = ((biased - 1) << self.mantissa_bits) + rounded;
            bits.min(overflow)
        };
        (sign | bits) as u16
    }
}

fn round_ties_even(value: f64) -> u32 {
    let floor = value.floor();
    let rest = value - floor;
    let low = floor as u32;
    if rest > 0.5 || (rest == 0.5 && low % 2 == 1) {
        low + 1
    } else {
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_value_goes_there_and_back() {
        for bits in 0..=u16::MAX {
            let ours = F16.decode(bits);
            let theirs = half::f16::from_bits(bits).to_f32();
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}");
            if !ours.is_nan() {
                assert_eq!(F16.encode(ours.into()), bits);
            }
            let ours = BF16.decode(bits);
            let theirs = half::bf16::from_bits(bits).to_f32();
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}");
            if !ours.is_nan() {
                assert_eq!(BF16.encode(ours.into()), bits);
            }
        }
    }

    #[test]
    fn every_byte_float_goes_there_and_back() {
        for bits in 0..=255u16 {
            for format in [&F8_E4M3FN, &F8_E5M2] {
                let value = format.decode(bits);
                if !value.is_nan() {
                    assert_eq!(format.encode(value.into()), bits);
                }
                assert_eq!(value.is_sign_negative(), bits >= 0x80);
            }
        }
        assert_eq!(F8_E4M3FN.decode(0x7e), 448.0);
        assert!(F8_E4M3FN.decode(0x7f).is_nan());
        assert_eq!(F8_E4M3FN.encode(F8_E4M3FN.decode(0xff).into()), 0xff);
        assert_eq!(F8_E5M2.decode(0x7b), 57344.0);
        assert_eq!(F8_E5M2.decode(0x7c), f32::INFINITY);
    }

    #[test]
    fn too_large_is_infinity_or_nan() {
        assert_eq!(F16.encode(1e6), 0x7c00);
        assert_eq!(F16.encode(-1e6), 0xfc00);
        assert_eq!(BF16.encode(-f64::MAX), 0xff80);
        assert_eq!(BF16.encode(-f64::MIN_POSITIVE), 0x8000);
        assert_eq!(F8_E5M2.encode(1e6), 0x7c);
        assert!(F8_E4M3FN.decode(F8_E4M3FN.encode(1e300)).is_nan());
        assert!(F16.decode(F16.encode(f64::NAN)).is_nan());
    }

    proptest::proptest! {
        #[test]
        fn rounds_like_half(value in proptest::num::f32::ANY) {
            if !value.is_nan() {
                proptest::prop_assert_eq!(F16.encode(value.into()), half::f16::from_f32(value).to_bits());
                proptest::prop_assert_eq!(BF16.encode(value.into()), half::bf16::from_f32(value).to_bits());
            }
        }
    }
}
