"""The steps of ``hebrew-asr prepare``: convert units in parallel, then assemble them into one training set.

Each unit of rows is converted by itself: its audio files go to their final place, and a *part*, written last and
atomically, is what makes the unit done. Assembly reads the parts in the order of the sources, so the result depends
neither on the number of processes nor on how often the run was killed.
"""
