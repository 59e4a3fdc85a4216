//! How far values are from what quantization makes of them.

/// Sums over values `w` and what they became, `q`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distortion {
    /// How many values.
    pub values: u64,
    /// `sum(w^2)`
    pub signal: f64,
    /// `sum((w - q)^2)`
    pub noise: f64,
    /// `max(|w - q|)`; infinite where only one of them is NaN.
    pub max_error: f64,
    /// `max(|w|)`
    pub largest: f64,
}

impl Distortion {
    /// Counts values and what they became, one for one.
    pub fn add(&mut self, values: &[f32], became: &[f32]) {
        for (&w, &q) in values.iter().zip(became) {
            let (w, q) = (f64::from(w), f64::from(q));
            // Two infinities of one sign, and two NaN, are equal.
            let same = w == q || (w.is_nan() && q.is_nan());
            let error = if same { 0.0 } else { (w - q).abs() };
            let error = if error.is_nan() { f64::INFINITY } else { error };
            self.values += 1;
            self.signal += w * w;
            self.noise += error * error;
            self.max_error = self.max_error.max(error);
            self.largest = self.largest.max(w.abs());
        }
    }

    /// Counts what `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        self.values += other.values;
        self.signal += other.signal;
        self.noise += other.noise;
        self.max_error = self.max_error.max(other.max_error);
        self.largest = self.largest.max(other.largest);
    }

    /// The signal-to-quantization-noise ratio in decibels, `10 log10(sum(w^2) / sum((w - q)^2))`. `None` where nothing was
    /// lost, minus infinity where all was (a value became NaN or infinite, or there was no signal).
    pub fn sqnr(&self) -> Option<f64> {
        if self.noise == 0.0 {
            return None;
        }
        let ratio = self.signal / self.noise;
        Some(if ratio.is_nan() { f64::NEG_INFINITY } else { 10.0 * ratio.log10() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32], became: &[f32]) -> Distortion {
        let mut distortion = Distortion::default();
        distortion.add(values, became);
        distortion
    }

    #[test]
    fn the_ratio_is_that_of_the_definition() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let became: Vec<f32> = values.iter().map(|x| (x * 8.0).round() / 8.0).collect();
        let power = |f: &dyn Fn(usize) -> f64| (0..1000).map(|i| f(i).powi(2)).sum::<f64>();
        let signal = power(&|i| f64::from(values[i]));
        let noise = power(&|i| f64::from(values[i]) - f64::from(became[i]));
        let got = of(&values, &became);
        assert!((got.sqnr().unwrap() - 10.0 * (signal.ln() - noise.ln()) / 10f64.ln()).abs() < 1e-9);
        let max = (0..1000).map(|i| f64::from((values[i] - became[i]).abs())).fold(0.0, f64::max);
        assert!((got.max_error - max).abs() < 1e-7 && max > 0.06, "{max}");
        assert_eq!(got.values, 1000);
    }

    #[test]
    fn a_tenth_of_the_amplitude_is_20_decibels() {
        assert!((of(&[1.0, -2.0], &[0.9, -1.8]).sqnr().unwrap() - 20.0).abs() < 1e-5);
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let (values, became) = ([1.0, 2.0, -7.0, 0.5], [1.5, 2.0, -6.0, 0.5]);
        let mut parts = of(&values[..3], &became[..3]);
        parts.merge(&of(&values[3..], &became[3..]));
        assert_eq!(parts, of(&values, &became));
        assert_eq!((parts.max_error, parts.largest), (1.0, 7.0));
    }

    #[test]
    fn nothing_lost_has_no_ratio_and_all_lost_the_lowest() {
        assert_eq!(of(&[], &[]).sqnr(), None);
        assert_eq!(of(&[1.0, f32::NAN], &[1.0, f32::NAN]).sqnr(), None);
        assert_eq!(of(&[1.0], &[f32::NAN]).sqnr(), Some(f64::NEG_INFINITY));
        assert_eq!(of(&[f32::INFINITY], &[0.0]).sqnr(), Some(f64::NEG_INFINITY));
        assert_eq!(of(&[0.0], &[1.0]).sqnr(), Some(f64::NEG_INFINITY));
    }
}
