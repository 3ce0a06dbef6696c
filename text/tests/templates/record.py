"""Renders every template here as transformers does, and writes expected.json.

    python -m venv venv && venv/bin/pip install transformers==5.23.0 jinja2
    venv/bin/python record.py
"""

import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

assert transformers.__version__ == "5.23.0", "expectations are made with a pinned version"

CASES = {
    "plain": [("user", "Hello")],
    "full": [("system", " Be brief. "), ("user", " Hi <b>\"you\"</b> "),
             ("assistant", "<think>\nhm\n</think>\n\nHéllo there\nfriend\n"), ("user", "An apple a day?\n")],
    "skip": [("user", "Hello"), ("skip", "x"), ("assistant", "yes"), ("end", "a banana"), ("user", "no")],
}

here = pathlib.Path(__file__).parent
rows = []
for file in sorted(here.glob("*.jinja")):
    for case, turns in CASES.items():
        messages = [{"role": role, "content": content} for role, content in turns]
        row = {"template": file.stem, "case": case, "messages": messages}
        try:
            texts, _ = render_jinja_template(
                [messages], chat_template=file.read_text(), add_generation_prompt=True,
                bos_token="<s>", eos_token="</s>", date_string="26 Jul 2024")
            row["text"] = texts[0]
        except jinja2.exceptions.TemplateError as error:
            row["raised"] = str(error)
        rows.append(row)
(here / "expected.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
