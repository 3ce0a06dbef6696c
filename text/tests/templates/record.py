"""Renders every template here with Jinja2, set up as transformers does, and writes expected.json.

    python3 record.py        (needs jinja2)
"""

import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

CASES = {
    "plain": [("user", "Hello")],
    "full": [("system", " Be brief. "), ("user", " Hi <b>\"you\"</b> "),
             ("assistant", "<think>\nhm\n</think>\n\nHéllo there\nfriend\n"), ("user", "An apple a day?\n")],
    "skip": [("user", "Hello"), ("skip", "x"), ("assistant", "yes"), ("end", "a banana"), ("user", "no")],
}


class Generation(jinja2.ext.Extension):
    """The block that marks what to train on."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.If(jinja2.nodes.Const(True), body, [], []).set_lineno(line)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception

here = pathlib.Path(__file__).parent
rows = []
for file in sorted(here.glob("*.jinja")):
    for case, turns in CASES.items():
        messages = [{"role": role, "content": content} for role, content in turns]
        row = {"template": file.stem, "case": case, "messages": messages}
        try:
            row["text"] = environment.from_string(file.read_text()).render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True,
                bos_token="<s>", eos_token="</s>")
        except jinja2.exceptions.TemplateError as error:
            row["raised"] = str(error)
        rows.append(row)
(here / "expected.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
