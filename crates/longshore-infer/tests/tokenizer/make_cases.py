"""Writes nemotron-h-10m.json: ids and texts of the bundled model's tokenizer by transformers 5.23.

    python make_cases.py PATH_OF_THE_REPOSITORY
"""

import json
import pathlib
import sys

from transformers import AutoTokenizer

TEXTS = ["", "Hello, world!", " a  b\n\n\tc ", "naïve café 東京 🙂👩‍👩‍👧", "x = [1, 2.5e-3]; // end", "<s>text</s>", "I'm we'LL 12345", "\u0000\ufeff\u00a0", "e\u0301 \u00e9 ﬁ", "a" * 60]

folder = pathlib.Path(sys.argv[1]) / "models/nemotron-h-10m"
tokenizer = AutoTokenizer.from_pretrained(folder)
cases = []
for text in TEXTS:
    ids = tokenizer(text)["input_ids"]
    cases.append({
        "text": text,
        "ids": ids,
        "plain": tokenizer(text, add_special_tokens=False)["input_ids"],
        "decoded": tokenizer.decode(ids),
        "skipped": tokenizer.decode(ids, skip_special_tokens=True),
    })
out = pathlib.Path(__file__).parent / "nemotron-h-10m.json"
out.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
