"""Ways out of a mixture: the raw LLaVA folder, the Parquet folder with its card, the Hub.

target    a folder that is claimed, filled and marked complete: what a killed run has finished stays finished
names     safe, distinct, stable file names         origins   where the samples of an export come from
raw       LLaVA json + image folder                 parquet   one part of a config as Parquet files
folder    the Parquet folder, its parts in order    card      README.md from dataset_card.md
hub       the Parquet folder sent to the Hub, one commit
"""
