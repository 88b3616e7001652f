"""What the command line takes: commands, their fixed options and their help. Fields of the recipe are tyro's part."""

import argparse
from collections.abc import Callable

DESCRIPTION = "Balanced diabetic-retinopathy grading from imbalanced data, at cluster scale, on Ray."
EPILOG = """stages, in order:
  ingest      photographs -> OUT/real (Ray Data)
  ensemble    graders that score images -> OUT/graders
  finetune    diffusion LoRAs per grade -> OUT/generators (Ray Train)
  synthesize  class-conditioned images, scored -> OUT/synthetic (Ray Data)
  sweep       graders over arms and bands -> OUT/trials (Ray Tune)
  report      OUT/report/index.html

`raydr STAGE --help` lists the stage's fields with their defaults. `--shape.FIELD VALUE` changes one number of the
shape (generators, generator_gpus, trial_cpus, train_workers, ...). Weights made elsewhere are taken in by
`raydr ensemble import` (a grader) and `raydr finetune import` (a generator), each with its own --help."""


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        "raydr", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    main.add_argument("--version", action="store_true", help="print the version and exit")
    commands = main.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help, allow_abbrev=False, add_help=False)

    for name, help in (
        ("demo", "the whole pipeline on built-in phantom data, on 2 cores without a GPU"),
        ("run", "all stages of a recipe, resuming what is there"),
        ("ingest", "photographs -> real"),
        ("ensemble", "train the graders that score images"),
        ("finetune", "fine-tune the diffusion generators"),
        ("synthesize", "generate and score images, to a count or a quota"),
        ("sweep", "train graders over arms, seeds, bands and ratios"),
    ):
        stage = command(name, help)
        stage.add_argument("-h", "--help", action="store_true", help="show this and every field with its default")
        if name in ("ensemble", "finetune"):
            stage.epilog = f"`raydr {name} import --help`: take in weights that were made elsewhere."
        stage.add_argument("--recipe", help="debug, demo, phantom or ddr_sd15 (default: the run's own)")
        stage.add_argument("--out", help="run directory: a path, s3://bucket/prefix or gs://bucket/prefix")
        stage.add_argument("--shape", default="laptop", help="laptop, workstation or cluster (default: laptop)")
        stage.add_argument("--address", help="address of a Ray cluster (default: the job's own, else this machine)")
        stage.add_argument("--accelerator", help="device type of all GPU work, by Ray's name: L4, A10G, H100, ...")
        stage.add_argument(
            "--exclude-node", action="append", metavar="NODE", help="give NODE (IP, host or Ray id) no work; repeatable"
        )
        stage.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the plan, then stop")
        if name == "ingest":
            source_arguments(stage)
    for name, help in (
        ("report", "write OUT/report/index.html and results.json"),
        ("status", "what OUT holds: per stage, per generator and grade; needs no Ray"),
        ("verify", "re-hash every committed shard of OUT"),
        ("repair", "drop what `verify` finds damaged, so that the stage redoes only that"),
        ("stop", "ask the driver of OUT, wherever it runs, to finish what is in flight and end; the run resumes later"),
    ):
        plain = command(name, help)
        plain.add_argument("-h", "--help", action="help", help="show this and exit")
        plain.add_argument("out", metavar="OUT", help="run directory")
        if name == "report":
            plain.add_argument(
                "--figures", metavar="DIR", help="also write figures (SVG, PDF, PNG) and tables (CSV, LaTeX)"
            )
            plain.add_argument(
                "--pictures",
                metavar="DIR",
                help="also write what a README shows: report.png (takes Chromium) and synthetic.png",
            )
    look = command("audit", "duplicates, leaks, shortcuts and class balance of OUT/real -> report/audit.html; no Ray")
    look.add_argument("-h", "--help", action="help", help="show this and exit")
    look.add_argument("out", metavar="OUT", help="run directory")
    look.add_argument("--strict", action="store_true", help="exit 1 where a picture or a patient is in two splits")
    live = command("watch", "serve the report of OUT live, on this machine only unless told otherwise")
    live.add_argument("-h", "--help", action="help", help="show this and exit")
    live.add_argument("out", metavar="OUT", help="run directory")
    live.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1)")
    live.add_argument("--port", type=int, default=8266, help="port (default: 8266)")
    job = command("submit", "send a command to a Ray cluster as a job, once, and follow it")
    job.usage = "raydr submit COMMAND [--address URL] [--resume] [the command's own options]"
    job.epilog = (
        "COMMAND is a stage, run, demo, or one about a run that is there (see `raydr --help`). Without --shape it "
        "takes --shape cluster. The same command again follows the job that runs."
    )
    job.add_argument("-h", "--help", action="help", help="show this and exit")
    job.add_argument("job", metavar="COMMAND", help="run, ingest, synthesize, sweep, report, rescore, select, ...")
    job.add_argument("--address", metavar="URL", help="Ray's Jobs API (default: RAY_ADDRESS, http://127.0.0.1:8265)")
    job.add_argument("--resume", action="store_true", help="send it again though its last job has ended")
    doctor = command("doctor", "what is wrong with this machine or a cluster, and what will be slow")
    doctor.add_argument("-h", "--help", action="help", help="show this and exit")
    doctor.add_argument("--address", help="auto, HOST:PORT, or the URL of the Jobs API (default: this machine)")
    doctor.add_argument("--out", help="also try the storage of this run: a path, s3://... or gs://...")
    again = command(
        "regenerate", "rebuild one sample from its row and compare the pixels; exits 0 only where they are equal"
    )
    again.add_argument("-h", "--help", action="help", help="show this and exit")
    again.add_argument("out", metavar="OUT", help="run directory")
    again.add_argument("sample_id", metavar="SAMPLE_ID", help="as in the report: GENERATOR/gGRADE/INDEX")
    again.add_argument("--to", required=True, metavar="FILE", help="PNG to write")
    boards = command("dashboards", "write the Grafana boards of pipeline and sweep for Ray's Prometheus and Grafana")
    boards.add_argument("-h", "--help", action="help", help="show this and exit")
    boards.add_argument(
        "--to",
        required=True,
        metavar="DIR",
        help="folder of Grafana's boards; Ray's is /tmp/ray/session_latest/metrics/grafana/dashboards, or what "
        "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR says",
    )
    upkeep_arguments(command)
    grader_arguments(command)
    bench = command("bench", "measure stages against their bare loops and peers, in interleaved ratios")
    bench.add_argument("-h", "--help", action="help", help="show this and exit")
    bench.add_argument(
        "what",
        nargs="?",
        default="all",
        choices=["all", "ingest", "score", "synthesize", "finetune", "sweep", "scaling", "memory", "gpu"],
        help="default: all, the five stages; scaling, memory and gpu (SD 1.5 shapes) run only by name",
    )
    bench.add_argument("--shape", default="laptop", help="laptop or workstation: what one machine is (default: laptop)")
    bench.add_argument(
        "--cpus",
        type=int,
        metavar="N",
        help="CPUs of either arm (default: all; with one to spare Ray's own processes take nothing from either)",
    )
    bench.add_argument("--json", metavar="FILE", help="write the figures there, and the tables beside it as .md")
    bench.add_argument("--against", metavar="FILE", help="an earlier --json: say what moved beyond noise")
    bench.add_argument("--repeats", type=int, metavar="N", help="interleaved pairs of each stage (default: 5)")
    bench.add_argument("--steps", type=int, metavar="N", help="of finetune: optimizer steps of an arm (default: 32)")
    bench.add_argument("--quick", action="store_true", help="one small pair a stage: a smoke test, not a measurement")
    bench.add_argument(
        "--sd15",
        action="store_true",
        help="of synthesize and finetune: Stable Diffusion 1.5's shapes, random weights; a GPU",
    )
    bench.add_argument("--work", metavar="DIR", help="where to measure (default: a temporary folder, removed)")
    for name, what in (
        ("actors", "sleeping generators (default: 1 2 4 8 16 32 64, 93 MB each)"),
        ("planned", "planned rows (default: 10000 to 10000000)"),
        ("rows", "rows of a tree that is there (default: 100000 1000000 10000000; the last takes 3 GB of disk)"),
    ):
        bench.add_argument(
            f"--{name}", nargs="*", type=int, metavar="N", help=f"of scaling: {what}; nothing leaves the curve out"
        )
    base = command("base", "build the small phantom base from nothing (about two hours on 2 cores; resumes)")
    base.add_argument("-h", "--help", action="help", help="show this and exit")
    base.add_argument("name", choices=["phantom"])
    base.add_argument("--to", required=True, metavar="FOLDER", help="where the diffusers folder goes")
    base.add_argument("--vae-steps", type=int, help="optimisation steps of the VAE (default: as the shipped base)")
    base.add_argument("--unet-steps", type=int, help="optimisation steps of the UNet (default: as the shipped base)")
    return main


def upkeep_arguments(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Commands of raydr/upkeep.py."""
    chosen = command("select", "export a training set: photographs and the synthetic images of a band; no Ray")
    chosen.add_argument("-h", "--help", action="help", help="show this and exit")
    chosen.add_argument("out", metavar="OUT", help="run directory")
    chosen.add_argument("--to", metavar="DIR", help="folder or bucket to write (default: only say what there is)")
    chosen.add_argument("--format", default="parquet", choices=["parquet", "folder"], help="default: parquet")
    chosen.add_argument("--band", nargs=2, type=float, metavar=("LOW", "HIGH"), help="scores (default: the sweep's)")
    chosen.add_argument("--ratio", type=float, help="1 balances the grades (default: the sweep's)")
    chosen.add_argument(
        "--grades", nargs="+", type=int, metavar="GRADE", help="grades that get images (default: the sweep's)"
    )
    chosen.add_argument("--kind", default="plain", help="kind of generator: plain, ecc, ... (default: plain)")
    chosen.add_argument("--generator", action="append", metavar="ID", help="take from this generator (repeatable)")
    chosen.add_argument("--ensemble", metavar="ID", help="scores of scores/ID, made by `raydr rescore`")
    waste = command("gc", "what OUT no longer needs (leftovers of kills, superseded checkpoints); deletes with --yes")
    waste.add_argument("-h", "--help", action="help", help="show this and exit")
    waste.add_argument("out", metavar="OUT", help="run directory")
    waste.add_argument("--yes", action="store_true", help="delete it (default: only say what and how much)")
    waste.add_argument("--caches", action="store_true", help="also latents and decoded images: made again when needed")
    waste.add_argument("--verbose", action="store_true", help="name each object")
    realism = command("quality", "KID, precision, recall, coverage and diversity of the images of each grade; no Ray")
    realism.add_argument("-h", "--help", action="help", help="show this and exit")
    realism.add_argument("out", metavar="OUT", help="run directory")
    realism.add_argument(
        "--inception", metavar="FILE", help="torch-fidelity's weights of InceptionV3 (default: features of the graders)"
    )
    judged = command("rescore", "score the images of OUT by another ensemble -> OUT/scores; nothing is generated")
    judged.add_argument("-h", "--help", action="help", help="show this and exit")
    judged.add_argument("out", metavar="OUT", help="run directory")
    judged.add_argument("--ensemble", required=True, metavar="DIR", help="folder of members, or an id in OUT/graders")
    judged.add_argument("--role", default="score", choices=["score", "audit", "all"], help="members (default: score)")
    judged.add_argument(
        "--paper-mode", action="store_true",
        help="accept imported graders, though nothing shows which photographs they have seen (default: refuse them)",
    )  # fmt: skip
    judged.add_argument("--shape", default="laptop", help="laptop, workstation or cluster (default: laptop)")
    judged.add_argument("--address", help="address of a Ray cluster (default: the job's own, else this machine)")


def grader_arguments(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Commands of raydr/grader_commands.py."""
    outside = command("evaluate", "trained graders of OUT on other data sets -> OUT/evaluations, report/external.json")
    outside.add_argument("-h", "--help", action="help", help="show this and exit")
    outside.add_argument("out", metavar="OUT", help="run directory")
    outside.add_argument(
        "--on", nargs="+", required=True, metavar="DATASET",
        help="data sets of role external in OUT, or folders and buckets of other runs (their test photographs)",
    )  # fmt: skip
    outside.add_argument(
        "--arm", nargs="+", metavar="ARM", help="arms whose graders are kept, or ensemble (default: all that are kept)"
    )
    outside.add_argument("--shape", default="laptop", help="laptop, workstation or cluster (default: laptop)")
    outside.add_argument("--address", help="address of a Ray cluster (default: the job's own, else this machine)")
    copy = command("export", "one trained grader as safetensors with a model card, for use without OUT")
    copy.add_argument("-h", "--help", action="help", help="show this and exit")
    copy.add_argument("out", metavar="OUT", help="run directory")
    copy.add_argument(
        "grader", metavar="GRADER", help="an arm (its kept grader that is best on validation), a trial id or a member"
    )
    copy.add_argument("--to", required=True, metavar="FOLDER", help="new folder")
    copy.add_argument("--title", help="title of the model card")
    copy.add_argument("--notes", help="a paragraph of the model card: data, licence, contact")


def import_parser() -> argparse.ArgumentParser:
    """`raydr ensemble import FILE`."""
    what = "a published LANet checkpoint -> a member's folder for `raydr rescore --ensemble`; no code of the file runs"
    found = argparse.ArgumentParser("raydr ensemble import", description=what, allow_abbrev=False)
    found.add_argument("file", metavar="FILE", help="torch file ({'net': ...} or a state dict) or .safetensors")
    found.add_argument(
        "--backbone",
        required=True,
        choices=["vgg16_bn", "densenet121", "inception_v3", "resnet50"],
        help="its backbone",
    )
    found.add_argument("--to", required=True, metavar="FOLDER", help="folder of members; this one goes into it")
    found.add_argument("--name", help="name of the member (default: backbone and file name)")
    found.add_argument("--px", type=int, default=512, help="side of its input, px (default: 512)")
    return found


def generator_import_parser() -> argparse.ArgumentParser:
    """`raydr finetune import FOLDER`."""
    what = "a LoRA, a UNet or a pipeline from elsewhere -> a generator of the run OUT; no code of its files runs"
    found = argparse.ArgumentParser("raydr finetune import", description=what, allow_abbrev=False)
    found.add_argument("source", metavar="FOLDER", help="LoRA (folder or .safetensors), UNet or pipeline of diffusers")
    found.add_argument("--out", required=True, metavar="OUT", help="folder or bucket of the run")
    found.add_argument("--grade", required=True, type=int, choices=range(5), help="grade that its images shall show")
    found.add_argument("--prompt", help="what it is sampled with (default: the prompt of the run's own generators)")
    return found


def source_arguments(ingest: argparse.ArgumentParser) -> None:
    """What `raydr ingest SOURCE PATH` takes beyond a stage's options."""
    ingest.usage = "raydr ingest [SOURCE PATH] [options] [--FIELD VALUE ...]"
    ingest.epilog = (
        "SOURCE is ddr, eyepacs, aptos, idrid, messidor2, deepdrid, fgadr, folder or csv, PATH its folder (or "
        "s3://, gs://); without them, the recipe's phantoms are drawn. Each call adds one data set to OUT/real."
    )
    ingest.add_argument(
        "--role", choices=["prior", "external"], help="prior: trains generators only; external: test only"
    )
    ingest.add_argument("--dataset", help="name of the data set in prompts and ids (default: the published one)")
    ingest.add_argument("--folds", metavar="LISTS", help="folder of published `name label` lists (default: drawn)")
    ingest.add_argument("--split-seed", type=int, help="seed of splits and folds (default: the recipe's seed)")
    ingest.add_argument("--num-folds", type=int, default=5, help="folds that are drawn (default: 5)")
    ingest.add_argument("--per-grade", type=int, default=33, help="photographs of each grade in a fold (default: 33)")
    ingest.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="leave out of this source what the audit would: never test rows, never rows of a source added before",
    )
