"""Makes the trained samples that ship in ``blockc/samples``: a small base and six fine-tunes of it.

Run ``python -m examples.train_samples``.  Everything is seeded, and every sentence is made from
the templates in this package, so the samples need nothing but this code to be made again.

* ``facts``      the small world the models know: countries, colours, animals, in English and German
* ``questions``  that world as questions with their answers, by ``counted``, ``world``, ``tales``
* ``voices``     the manner of each fine-tune: how it words an answer
* ``corpus``     conversations and documents, drawn at random
* ``tokenizer``  the byte-level BPE and the chat template
* ``plans``      how long and in which shape each sample is trained
* ``train``      packing, the training loop, and saving
* ``sheet``      the README beside the samples, with answers the models really gave
"""
