"""What only the published book needs.

``notebook``         which model a chapter adds, on which device, and whether it fits there
``landing``          what the landing page says, out of stored tables
``live``             controls for prompts that a reader types, where a kernel runs
``instrument``       where a page has a model to play with, and what it begins with
``page_model``       a real model as files that a page can run
``npm``              what runs them there, and the plotly.js of a page: files out of packages of the npm registry
``scorecard``        all claims and all models side by side
``claim_words``      what claims and their rules say, and how their numbers read
``rules``            the rules that judge, each beside its power
``data_dictionary``  what the files in ``data/`` hold, by field
``sources``          where a function of the package stands, so that a page can lead to it
``citation``         how to cite the book
``sentences``        what the sentences of all chapters share
``inhibition``       what chapter 1 says of its tables
``positional``       what chapter 2 says of its tables
``editing``          what chapter 3 says of its tables
``icl``              what chapter 4 says of its tables
"""
