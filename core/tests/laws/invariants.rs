//! Invariants of every rule, on rows with zeros and ties.

use cascadia_core::decoding::{Decoding, Strategy as Plan};
use cascadia_core::distribution::Distribution;
use cascadia_core::drafting::draft;
use cascadia_core::rule::{Pair, Rule, Target};
use cascadia_core::verify::{check, walk};
use proptest::prelude::*;

use crate::decoding;
use crate::definitions::norm;

fn weights(size: usize) -> impl Strategy<Value = Vec<f64>> {
    // Zeros and ties are where rules go wrong.
    proptest::collection::vec(prop_oneof![Just(0.0), Just(0.25), 0.0..1.0f64], size)
        .prop_filter("a row has mass", |row| row.iter().sum::<f64>() > 0.0)
        .prop_map(|row| norm(&row))
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let signed = prop_oneof![Just(0.0), -1.0..=1.0f64];
    let share = prop_oneof![Just(0.0), 0.0..1.0f64];
    prop_oneof![
        share.clone().prop_map(|alpha| Rule::Chow { alpha }),
        signed.clone().prop_map(|alpha| Rule::Diff { alpha }),
        prop_oneof![Just(f64::INFINITY), Just(f64::NEG_INFINITY), -9.0..9.0f64].prop_map(|alpha| Rule::Opt { alpha }),
        (0.0..3.0f64).prop_map(|alpha| Rule::ChowLog { alpha }),
        (-2.0..2.0f64).prop_map(|alpha| Rule::DiffLog { alpha }),
        (-9.0..9.0f64).prop_map(|alpha| Rule::OptLog { alpha }),
        signed.clone().prop_map(|alpha| Rule::TokenV1 { alpha }),
        signed.clone().prop_map(|alpha| Rule::TokenV2 { alpha }),
        signed.prop_map(|alpha| Rule::TokenV3 { alpha }),
        share.clone().prop_map(|alpha| Rule::Lenience { alpha }),
        share.prop_map(|alpha| Rule::Mentored { alpha }),
        (0.01..1.0f64, 0.01..2.0f64).prop_map(|(epsilon, delta)| Rule::Typical { epsilon, delta }),
        (0.0..1.0f64, 0.0..4.0f64).prop_map(|(fallback, rollback)| Rule::Bild { fallback, rollback }),
    ]
}

fn pair<'a>(
    q: &'a Distribution,
    p: &'a Distribution,
    raw_q: &Distribution,
    raw_p: &'a Distribution,
    temperature: f64,
) -> Pair<'a> {
    Pair { q, p, max_q: raw_q.max(), entropy_q: raw_q.entropy(), raw_p, temperature }
}

fn dense(target: &Target<'_>) -> Vec<f64> {
    (0..7).map(|token| target.prob(token)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_target_is_a_law_and_the_walk_emits_it(
        rule in any_rule(), q in weights(7), p in weights(7), stops in proptest::sample::subsequence(vec![0u32, 3, 6], 0..=3),
    ) {
        let (q, p) = (Distribution::dense(q), Distribution::dense(p));
        let pair = pair(&q, &p, &q, &p, 1.0);
        let target = rule.target(&pair, &stops);
        let pi = dense(&target);
        prop_assert!(pi.iter().all(|x| *x >= 0.0));
        prop_assert!((pi.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{pi:?}");
        prop_assert!((target.iter().map(|entry| entry.1).sum::<f64>() - 1.0).abs() < 1e-9);
        // What is rejected is what the residual holds.
        if !rule.reads().decided_by_drafter {
            let left = target.residual(&q).map(|entry| entry.1).sum::<f64>();
            prop_assert!((left - target.rejection(&q)).abs() < 1e-9);
            for &stop in &stops {
                prop_assert!((target.prob(stop) - p.prob(stop)).abs() < 1e-12, "a stop is the expert's");
            }
        }
        // Without stops it is the dense law of the definitions.
        if stops.is_empty() {
            let position = matches!(rule, Rule::Chow { .. } | Rule::Diff { .. } | Rule::Opt { .. }
                | Rule::ChowLog { .. } | Rule::DiffLog { .. } | Rule::OptLog { .. });
            let open = rule.target(&pair, &[]);
            if position {
                prop_assert!(open.rejection(&q) < 1e-12 || dense(&open) == dense(&Target::exact(&pair)), "q or p");
            }
            if let Rule::TokenV3 { alpha } = rule {
                for (token, weight) in q.iter() {
                    let keeps = p.prob(token) >= (1.0 - alpha) * p.max();
                    prop_assert!(!keeps || open.prob(token) >= weight, "a kept token is always accepted");
                }
            }
        }
    }

    #[test]
    fn rules_meet_where_they_should(q in weights(7), p in weights(7), alpha in -1.0..1.0f64) {
        let (q, p) = (Distribution::dense(q), Distribution::dense(p));
        let sampled = pair(&q, &p, &q, &p, 1.0);
        let of = |rule: Rule, pair: &Pair<'_>| dense(&rule.target(pair, &[]));
        prop_assert_eq!(of(Rule::Opt { alpha: 0.0 }, &sampled), of(Rule::Diff { alpha: 0.0 }, &sampled));
        prop_assert_eq!(of(Rule::TokenV3 { alpha: 0.0 }, &sampled), of(Rule::TokenV2 { alpha: 0.0 }, &sampled));
        for exact in [Rule::Lenience { alpha: 0.0 }, Rule::Mentored { alpha: 0.0 }, Rule::TokenV3 { alpha: -1.0 }] {
            for (got, wanted) in of(exact, &sampled).into_iter().zip(dense(&Target::exact(&sampled))) {
                prop_assert!((got - wanted).abs() < 1e-9, "{:?}", exact);
            }
        }
        // Greedy, with argmaxes that differ.
        let (a, b) = (q.argmax(), p.argmax());
        if a != b {
            let (one_q, one_p) = (Distribution::point_mass(a), Distribution::point_mass(b));
            let greedy = pair(&one_q, &one_p, &q, &p, 0.0);
            let diff = of(Rule::Diff { alpha }, &greedy);
            prop_assert_eq!(&of(Rule::Opt { alpha }, &greedy), &diff);
            prop_assert_eq!(&of(Rule::TokenV1 { alpha }, &greedy), &diff);
        }
    }

    #[test]
    fn no_row_breaks_a_walk(
        rule in any_rule(),
        temperature in prop_oneof![Just(0.0), 0.05..2.0f64],
        (q, p) in (proptest::collection::vec(any::<u32>(), 8), proptest::collection::vec(any::<u32>(), 8)),
        seed: u64,
    ) {
        let [q, p] = [q, p].map(|bits| bits.into_iter().map(f32::from_bits).collect::<Vec<_>>());
        let decoding = Decoding { seed, ..decoding(Plan::SpeculativeCascade { rule }, temperature) };
        let draft = draft(&decoding, &[1, 2], &q);
        prop_assert_eq!(check(&decoding, 8, &draft), Ok(()));
        let walk = walk(&decoding, &[1, 2], &[draft], &[&p]);
        prop_assert!(walk.replacement.is_none_or(|token| token < 8));
        prop_assert_eq!(walk.scores.len(), 1);
    }
}
