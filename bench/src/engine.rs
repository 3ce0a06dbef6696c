//! `engine`: every row, ours and theirs in turns.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cascadia::demo::problems::held_out;
use cascadia::load::{Model, Pair, shipped_pair};
use cascadia::pad::{PadArgs, millions, pad};
use cascadia::{Failure, Outcome};

use crate::EngineArgs;
use crate::llama::{LlamaCpp, MISSING, NO_SERVER};
use crate::machine::Bounds;
use crate::passes::{BLOCK, DECODED, PROMPT, Passes};
use crate::sampling::{VOCABULARY, costs};
use crate::sessions::{SpeedSample, alone, at_once, cluster};
use crate::table::{Row, Table, median};

/// Sessions at a time.
const SESSIONS: usize = 16;

/// Runs the command.
///
/// # Errors
/// When a model cannot be written or loaded, or anything that is measured fails.
pub async fn run(args: &EngineArgs) -> Outcome {
    let llama = args.llama_cpp.as_deref().map(|dir| LlamaCpp::find(dir, args.threads)).transpose()?;
    match &llama {
        None => eprintln!("{MISSING}"),
        Some(llama) if !llama.serves() => eprintln!("{NO_SERVER}"),
        Some(_) => {}
    }
    let models = Models::written(args)?;
    let mut rows = Vec::new();
    for (file, repetitions) in [(&models.expert, 20), (&models.padded, 1)] {
        rows.extend(passes(args, llama.as_ref(), file, repetitions)?);
    }
    let (drawn, kept): (Vec<f64>, Vec<f64>) = (0..args.rounds).map(|_| costs()).unzip();
    rows.push(Row::new(format!("drawn token at temperature 1, {VOCABULARY} tokens, ms"), &drawn, &[], None));
    rows.push(Row::new(format!("tested and kept position, {VOCABULARY} tokens, ms"), &kept, &[], None));
    rows.extend(sessions(args, llama.as_ref(), &models).await?);
    let cpu = cascadia::machine::cpu().unwrap_or_else(|| std::env::consts::ARCH.into());
    let table = Table { cpu, rows };
    if args.json {
        cascadia::print_line(&serde_json::to_string(&table)?)?;
    } else {
        cascadia::print_line(&format!(
            "{}, {} threads, Q8_0; tokens a second unless another unit is named",
            table.cpu, args.threads
        ))?;
        cascadia::print(&table.to_text())?;
    }
    Ok(())
}

/// GGUF files of the shipped pair, and of its expert padded: the same function, bit for bit.
struct Models {
    drafter: PathBuf,
    expert: PathBuf,
    padded: PathBuf,
}

impl Models {
    /// Writes those that are not there yet.
    fn written(args: &EngineArgs) -> Result<Self, Failure> {
        let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        let folder = args.models.clone().unwrap_or_else(default);
        std::fs::create_dir_all(&folder)?;
        let pair = shipped_pair()?;
        let write = |name: &str, of: &str, to: Option<u64>| {
            let out = folder.join(format!("{name}.gguf"));
            if !out.exists() {
                pad(&PadArgs { model: pair.join(of), to, out: out.clone() })?;
            }
            Ok::<_, Failure>(out)
        };
        Ok(Self {
            drafter: write("drafter", "drafter", None)?,
            expert: write("expert", "expert", None)?,
            padded: write(&format!("expert-{}", args.size), "expert", Some(args.size))?,
        })
    }
}

/// One session's passes over one model.
fn passes(args: &EngineArgs, llama: Option<&LlamaCpp>, file: &Path, repetitions: usize) -> Result<Vec<Row>, Failure> {
    let threads = args.threads as usize;
    let model = Model::load(file, "q8_0")?;
    let mut engine = Passes::new(&model, threads)?;
    let bounds = Bounds::measure(std::fs::metadata(file)?.len(), model.parameters(), threads);
    let (mut ours, mut theirs) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    // Once for the memory that first use takes.
    engine.together(PROMPT, 1, 1)?;
    for _ in 0..args.rounds {
        let plain = (0..repetitions).map(|_| engine.plain()).collect::<Result<Vec<_>, _>>()?;
        ours[0].push(median(&plain).unwrap_or(f64::NAN));
        ours[1].push(engine.together(BLOCK, BLOCK, 8 * repetitions)?);
        ours[2].push(engine.together(PROMPT, 1, repetitions)?);
        if let Some(llama) = llama {
            let rates = llama.bench(file, (DECODED, BLOCK, PROMPT), repetitions.max(2))?;
            for (all, rate) in theirs.iter_mut().zip([rates.plain, rates.block, rates.prompt]) {
                all.push(rate);
            }
        }
    }
    let size = millions(model.parameters());
    let row = |name: &str, at: usize, tokens: usize| {
        Row::new(format!("{name}, {size}"), &ours[at], &theirs[at], Some(bounds.rate(tokens)))
    };
    let cost = |plain: &[f64], block: &[f64]| -> Vec<f64> {
        plain.iter().zip(block).map(|(plain, block)| BLOCK as f64 * plain / block).collect()
    };
    let (ours_cost, their_cost) = (cost(&ours[0], &ours[1]), cost(&theirs[0], &theirs[1]));
    let least = BLOCK as f64 * bounds.rate(1) / bounds.rate(BLOCK);
    Ok(vec![
        row("one session, plain", 0, 1),
        row("8 tokens in a pass", 1, BLOCK),
        Row::new(format!("time of such a pass over a single token's, {size}"), &ours_cost, &their_cost, Some(least)),
        row("prompt of 512", 2, PROMPT),
    ])
}

/// Whole servers with the padded expert.
async fn sessions(args: &EngineArgs, llama: Option<&LlamaCpp>, models: &Models) -> Result<Vec<Row>, Failure> {
    let pair = Pair::new(Model::load(&models.drafter, "q8_0")?, Model::load(&models.padded, "q8_0")?)?;
    let size = millions(pair.expert.parameters());
    let cluster = cluster(&pair, args.threads as usize).await?;
    let (client, tokenizer) = (cluster.client().await?, &pair.expert.tokenizer);
    let problems = held_out();
    let servers = match llama.filter(|llama| llama.serves()) {
        None => None,
        Some(llama) => Some((
            Arc::new(llama.serve(&models.padded, SESSIONS, None)?),
            Arc::new(llama.serve(&models.padded, 1, Some(&models.drafter))?),
        )),
    };
    // The last problem opens connections and touches memory.
    alone(&client, tokenizer, &problems[problems.len() - 1..], servers.as_ref()).await?;
    let all = alone(&client, tokenizer, &problems[..args.problems as usize], servers.as_ref()).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..args.rounds as usize {
        let turn = problems.iter().cycle().skip(round * SESSIONS).take(SESSIONS).cloned().collect::<Vec<_>>();
        let (our, their) =
            at_once(&client, tokenizer, (round, &turn), servers.as_ref().map(|(plain, _)| plain)).await?;
        ours.push(our);
        theirs.extend(their);
    }
    cluster.stop().await;
    let over = |fast: &[f64], slow: &[f64]| -> Vec<f64> { fast.iter().zip(slow).map(|(f, s)| f / s).collect() };
    let (plain, theirs_plain) = (&all.plain.rates, &all.their_plain.rates);
    let (texts, same) = (all.plain.texts.len(), |sample: &SpeedSample| sample.same_as(&all.plain));
    eprintln!(
        "of {texts} texts, exact speculation wrote {} as our expert alone; {} are right, {} of token_v3's",
        same(&all.exact),
        all.plain.right,
        all.lossy.right
    );
    if servers.is_some() {
        eprintln!(
            "llama-server wrote {} as our expert, {} with the draft model",
            same(&all.their_plain),
            same(&all.their_exact)
        );
    }
    Ok(vec![
        Row::new(format!("{SESSIONS} sessions, plain, {size}"), &ours, &theirs, None),
        Row::new(format!("one session over the wire, plain, {size}"), plain, theirs_plain, None),
        Row::new(format!("exact speculation, {size} with the drafter"), &all.exact.rates, &all.their_exact.rates, None),
        Row::new(
            "exact speculation over plain, each its own",
            &over(&all.exact.rates, plain),
            &over(&all.their_exact.rates, theirs_plain),
            None,
        ),
        Row::new("token_v3 over our plain", &over(&all.lossy.rates, plain), &[], None),
    ])
}
