"""What the results of an evaluation say: numbers (`coco`), charts (`charts`) and drawn images (`images`).

Their texts have the fonts that class names need (`fonts`).
"""
