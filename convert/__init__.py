"""One model in many dialects: names, layouts, configs, tokenizers; the plan and the run."""
