"""Execution accuracy of SQL answers: same result as the gold query on tables of random rows.

After the test suites of Zhong et al. 2020 (https://aclanthology.org/2020.emnlp-main.29): one database
lets wrong queries pass by chance, several made to tell queries apart hardly do.
"""
