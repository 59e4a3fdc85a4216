//! Means, their errors, and order statistics.

/// Values that belong together, e.g. those of one window: their sum and number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cluster {
    pub(crate) sum: f64,
    pub(crate) count: usize,
}

impl Cluster {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        values.into_iter().fold(Self::default(), |c, x| Self { sum: c.sum + x, count: c.count + 1 })
    }
}

/// The mean over all values of all clusters; NaN without values.
pub(crate) fn mean(clusters: &[Cluster]) -> f64 {
    let Cluster { sum, count } = total(clusters);
    sum / count as f64
}

/// The sum and number of all values.
pub(crate) fn total(clusters: &[Cluster]) -> Cluster {
    clusters.iter().fold(Cluster::default(), |a, c| Cluster { sum: a.sum + c.sum, count: a.count + c.count })
}

/// The standard error of [`mean`], clustered: `sqrt(G / (G - 1) * sum((S_g - n_g m)^2)) / N` for `G` clusters with sums
/// `S_g` of `n_g` values, which are independent of each other but not within. (The linearized variance of a ratio, Cochran,
/// Sampling Techniques, 3rd ed., 6.3 and 9A.) With one value a cluster it is the sample deviation by `sqrt(N)`. `None` below
/// two clusters.
pub(crate) fn clustered_error(clusters: &[Cluster]) -> Option<f64> {
    let groups = clusters.len() as f64;
    let (mean, count) = (mean(clusters), total(clusters).count as f64);
    let squares: f64 = clusters.iter().map(|c| (c.sum - c.count as f64 * mean).powi(2)).sum();
    (clusters.len() > 1).then(|| (groups / (groups - 1.0) * squares).sqrt() / count)
}

/// The quantile of sorted values, interpolated between the two nearest, as numpy's `percentile` and llama.cpp's; NaN
/// without values.
pub(crate) fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let at = fraction * sorted.len().saturating_sub(1) as f64;
    #[expect(clippy::cast_sign_loss, reason = "a fraction of a length")]
    let get = |i: f64| sorted.get(i as usize).copied();
    let Some(low) = get(at.floor()) else { return f64::NAN };
    match get(at.floor() + 1.0) {
        // Infinity times zero would be NaN.
        Some(high) if at.fract() > 0.0 => low + at.fract() * (high - low),
        _ => low,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_values_have_the_sample_error() {
        let values = [1.0, 2.0, 4.0, 9.0];
        let clusters = values.map(|x| Cluster::of([x]));
        // statistics.stdev([1, 2, 4, 9]) / 2
        assert!((clustered_error(&clusters).unwrap() - 3.559_026_084_010_437 / 2.0).abs() < 1e-15);
        assert_eq!((mean(&clusters), clustered_error(&clusters[..1])), (4.0, None));
    }

    #[test]
    fn repeating_every_value_within_its_cluster_adds_no_certainty() {
        let once = [1.0, 2.0, 4.0, 9.0].map(|x| Cluster::of([x]));
        let often = [1.0, 2.0, 4.0, 9.0].map(|x| Cluster::of([x; 50]));
        assert!((clustered_error(&once).unwrap() - clustered_error(&often).unwrap()).abs() < 1e-15);
    }

    #[test]
    fn quantiles_are_numpys() {
        // numpy.percentile([1, 2, 4, 9], [0, 50, 90, 100])
        let sorted = [1.0, 2.0, 4.0, 9.0];
        assert_eq!([0.0, 0.5, 1.0].map(|f| quantile(&sorted, f)), [1.0, 3.0, 9.0]);
        assert!((quantile(&sorted, 0.9) - 7.5).abs() < 1e-12);
        assert!(quantile(&[], 0.5).is_nan());
        assert_eq!(quantile(&[1.0, f64::INFINITY], 0.0), 1.0);
    }
}
