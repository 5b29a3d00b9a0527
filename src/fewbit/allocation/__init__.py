"""Which layers hurt, and how many bits each should get under a budget: sensitivity, allocation, and a loop to check it.

It stands above the pipeline, which plans, calibrates and solves for it, and what it emits is an ordinary recipe.
"""
