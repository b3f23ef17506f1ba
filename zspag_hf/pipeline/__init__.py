"""The paper, stage by stage: classifier -> attacks -> proxies (eq. 1-2) -> layers -> grams -> subspaces (eq. 3-4) ->
constraint (eq. 5); influence -> pseudo_labels (eq. 7-10). Imports nothing of ours but errors and parallel."""
