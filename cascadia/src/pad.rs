//! `cascadia pad`: the same function in a larger model's shape, or in another kind of file.

use std::path::{Path, PathBuf};

use cascadia_model::{Config, PadReport};
use clap::Args;

use crate::load::folder_name;
use crate::progress::follow;
use crate::terminal::{self, Failure, Outcome};

/// Arguments of `pad`.
#[derive(Args, Clone, Debug)]
pub struct PadArgs {
    /// Folder of the model (Hugging Face layout).
    #[arg(value_name = "DIR")]
    pub model: PathBuf,

    /// Parameters to reach, for example 100M; may be left out where a GGUF file is written: the model as it is.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub to: Option<u64>,

    /// Folder to write, made if it is not there; or a file named *.gguf, which gets the weights in Q8_0.
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
}

/// Whether a path names a GGUF file.
fn names_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be read, is larger already, or the folder or file cannot be written.
pub fn run(args: &PadArgs) -> Outcome {
    if args.out.join("config.json").exists() || args.out.is_file() {
        return Err(format!("{} holds a model already; name another place with --out", args.out.display()).into());
    }
    let report = pad(args)?;
    let sentence = format!(
        "{}: {} parameters, the same function as {}",
        args.out.display(),
        millions(report.parameters),
        args.model.display()
    );
    terminal::print_line(&sentence)?;
    Ok(())
}

/// Pads with a progress bar.
///
/// # Errors
/// As [`run`].
pub fn pad(args: &PadArgs) -> Result<PadReport, Failure> {
    let bar = terminal::bar(0, "{msg} {bar:30} {percent:>3}%");
    bar.set_message(format!("writing {}", folder_name(&args.out)));
    let progress = &mut |progress: cascadia_model::Progress<'_>| follow(&bar, progress);
    let report = if names_gguf(&args.out) {
        let text = cascadia_text::gguf_metadata(&args.model, Config::read(&args.model)?.vocabulary)?;
        cascadia_model::write_gguf(&args.model, args.to, &args.out, text, progress)?
    } else {
        let to = args.to.ok_or("say how large the padded model shall be, for example --to 100M")?;
        cascadia_model::pad(&args.model, to, &args.out, progress)?
    };
    bar.finish_and_clear();
    Ok(report)
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

/// A number of parameters for people: 4.87 M.
#[must_use]
pub fn millions(parameters: u64) -> String {
    let millions = parameters as f64 / 1e6;
    if millions < 10.0 { format!("{millions:.2} M") } else { format!("{millions:.0} M") }
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

    #[test]
    fn sizes_for_people() {
        assert_eq!((millions(4_870_000).as_str(), millions(100_400_000).as_str()), ("4.87 M", "100 M"));
    }
}
