# Many prompts, each moved a little: what changes in the search of adversarial prompts.
brief_search = dict(prompts_per_class=20, steps=3, images_per_prompt=1, holdout=0)
