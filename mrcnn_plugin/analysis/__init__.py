"""Pictures and numbers: of a data set (`dataset`), and of the results of an evaluation.

Of results there are numbers (`coco`), charts (`charts`) and drawn images (`images`). All texts have the fonts that
class names need (`fonts`).
"""
