//! The laws once more, densely and straight from their definitions.

use cascadia_core::decoding::Sampling;
use cascadia_core::ids::TokenId;
use cascadia_core::rule::Rule;

use crate::EOS;

pub fn softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|x| ((x - top) / temperature).exp()).collect();
    norm(&weights)
}

pub fn norm(weights: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

pub fn penalised(logits: &[f32], sampling: &Sampling, history: &[TokenId], prompt_length: usize) -> Vec<f64> {
    let change = |(token, &logit): (usize, &f32)| {
        let count = |tokens: &[TokenId]| tokens.iter().filter(|other| **other as usize == token).count() as f64;
        let mut x = f64::from(logit);
        if count(history) > 0.0 {
            x = if x > 0.0 { x / sampling.repetition_penalty } else { x * sampling.repetition_penalty };
        }
        let written = count(&history[prompt_length..]);
        x - if written > 0.0 { sampling.presence_penalty + sampling.frequency_penalty * written } else { 0.0 }
    };
    logits.iter().enumerate().map(change).collect()
}

pub fn top_k(row: &[f64], k: usize) -> Vec<f64> {
    let mut sorted = row.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let floor = if k == 0 { 0.0 } else { sorted[k.min(row.len()) - 1] };
    norm(&row.iter().map(|&w| if w >= floor { w } else { 0.0 }).collect::<Vec<_>>())
}

fn maximum(row: &[f64]) -> f64 {
    row.iter().copied().fold(0.0, f64::max)
}

fn argmax(row: &[f64]) -> usize {
    row.iter().position(|w| *w == maximum(row)).unwrap()
}

fn entropy(row: &[f64]) -> f64 {
    row.iter().filter(|w| **w > 0.0).map(|w| -w * w.ln()).sum()
}

pub struct Rows {
    pub q: Vec<f64>,
    pub p: Vec<f64>,
    raw_q: Vec<f64>,
    raw_p: Vec<f64>,
}

pub fn rows(sampling: &Sampling, (q, p): (Vec<f64>, Vec<f64>)) -> Rows {
    let shaped = |x: &[f64]| top_k(&softmax(x, sampling.temperature), sampling.top_k);
    Rows { q: shaped(&q), p: shaped(&p), raw_q: softmax(&q, 1.0), raw_p: softmax(&p, 1.0) }
}

pub fn law(rule: Rule, rows: &Rows) -> Vec<f64> {
    let Rows { q, p, raw_q, raw_p } = rows;
    let ids = || 0..q.len();
    let tv: f64 = ids().map(|v| (p[v] - q[v]).max(0.0)).sum();
    let (mq, mp, hq, hp) = (maximum(raw_q), maximum(raw_p), entropy(raw_q), entropy(raw_p));
    let price = |alpha: f64| if alpha.is_infinite() { alpha } else { alpha * tv };
    let position = |defer: bool| if defer { p.clone() } else { q.clone() };
    let tokens = |defers: &dyn Fn(usize) -> bool| -> Vec<f64> {
        let eta: f64 = ids().filter(|&v| defers(v)).map(|v| q[v]).sum();
        ids().map(|v| if defers(v) { 0.0 } else { q[v] } + eta * p[v]).collect()
    };
    let open = match rule {
        Rule::Chow { .. } | Rule::ChowLog { .. } => {
            let defers =
                if let Rule::Chow { alpha } = rule { mq < 1.0 - alpha } else { hq > rule.parameters().alpha.unwrap() };
            if defers || argmax(raw_q) == EOS as usize {
                return p.clone();
            }
            let without: Vec<f64> = ids().map(|v| if v == EOS as usize { 0.0 } else { q[v] }).collect();
            return norm(&without);
        }
        Rule::Diff { alpha } => position(mq < mp - alpha),
        Rule::Opt { alpha } => position(mq < mp - price(alpha)),
        Rule::DiffLog { alpha } => position(hq > hp + alpha),
        Rule::OptLog { alpha } => position(hq > hp + price(alpha)),
        Rule::TokenV1 { alpha } => tokens(&|v| raw_q[v] < mp - alpha),
        Rule::TokenV2 { alpha } => tokens(&|v| raw_p[v] < mp - alpha),
        Rule::TokenV3 { alpha } => tokens(&|v| raw_p[v] < (1.0 - alpha) * mp),
        Rule::Typical { epsilon, delta } => tokens(&|v| raw_p[v] <= epsilon.min(delta * (-hp).exp())),
        Rule::Lenience { alpha } => {
            let kept: Vec<f64> = ids().map(|v| q[v].min(p[v] / (1.0 - alpha))).collect();
            let rejected = 1.0 - kept.iter().sum::<f64>();
            ids().map(|v| kept[v] + rejected * (p[v] - q[v]).max(0.0) / tv).collect()
        }
        Rule::Mentored { alpha } => {
            let at = |s: f64| -> Vec<f64> { ids().map(|v| q[v].min(p[v] / (1.0 - alpha)).max(s * p[v])).collect() };
            let (mut low, mut high) = (0.0, 1.0 / (1.0 - alpha));
            for _ in 0..200 {
                let middle = f64::midpoint(low, high);
                if at(middle).iter().sum::<f64>() < 1.0 { low = middle } else { high = middle }
            }
            at(low)
        }
        Rule::Bild { fallback, rollback } => {
            let k = argmax(raw_q);
            let defers = mq < fallback || (k != argmax(raw_p) && -raw_p[k].ln() > rollback);
            if defers { p.clone() } else { ids().map(|v| f64::from(u8::from(v == k))).collect() }
        }
    };
    let eos = EOS as usize;
    if open[eos] > 1.0 - 1e-12 {
        return p.clone();
    }
    ids().map(|v| if v == eos { p[v] } else { open[v] * (1.0 - p[eos]) / (1.0 - open[eos]) }).collect()
}

pub fn widened((q, p): ([f32; 8], [f32; 8])) -> (Vec<f64>, Vec<f64>) {
    (q.map(f64::from).to_vec(), p.map(f64::from).to_vec())
}
