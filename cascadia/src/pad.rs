//! `cascadia pad`: the same function in a larger model's shape.

use std::path::PathBuf;

use clap::Args;

use crate::demo::table::millions;
use crate::{Outcome, load};

/// Arguments of `pad`.
#[derive(Args, Clone, Debug)]
pub struct PadArgs {
    /// Folder of the model (Hugging Face layout).
    #[arg(value_name = "DIR")]
    pub model: PathBuf,

    /// Parameters to reach, for example 100M.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub to: u64,

    /// Folder to write; made if it is not there.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be read, is larger already, or the folder cannot be written.
pub fn run(args: &PadArgs) -> Outcome {
    if args.out.join("config.json").exists() {
        return Err(format!("{} holds a model already; name another folder with --out", args.out.display()).into());
    }
    let parameters = pad(args)?;
    let sentence = format!(
        "{}: {} parameters, the same function as {}",
        args.out.display(),
        millions(parameters),
        args.model.display()
    );
    crate::print_line(&sentence)?;
    Ok(())
}

/// Pads with a progress bar; the parameters reached.
///
/// # Errors
/// As [`run`].
pub fn pad(args: &PadArgs) -> Result<u64, crate::Failure> {
    let bar = load::bar(0, "{msg} {bar:30} {percent:>3}%");
    bar.set_message(format!("padding {} to {}", load::folder_name(&args.model), millions(args.to)));
    let report = cascadia_model::pad(&args.model, args.to, &args.out, &mut |progress| load::follow(&bar, progress))?;
    bar.finish_and_clear();
    Ok(report.parameters)
}

/// 100M, 1.5G, 700k or a plain number of parameters.
///
/// # Errors
/// When it is none of these.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let sentence = || format!("{text:?} is no size; write it like 100M or 1.5B");
    let (digits, unit) = match text.char_indices().last() {
        Some((at, letter)) if letter.is_ascii_alphabetic() => (&text[..at], letter.to_ascii_lowercase()),
        _ => (text, ' '),
    };
    let unit = match unit {
        ' ' => 1.0,
        'k' => 1e3,
        'm' => 1e6,
        'g' | 'b' => 1e9,
        _ => return Err(sentence()),
    };
    let number: f64 = digits.trim().parse().map_err(|_| sentence())?;
    let size = (number * unit).round();
    if size.is_finite() && (1.0..1e15).contains(&size) { Ok(size as u64) } else { Err(sentence()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in
            [("100M", 100_000_000), ("1.5b", 1_500_000_000), ("2G", 2_000_000_000), ("700k", 700_000), ("42", 42)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "M", "big", "-5M", "0", "nan", "inf", "1e300", "5T", "1 0M"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
