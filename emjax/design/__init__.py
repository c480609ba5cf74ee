"""What an experiment is: its arms, their users, the quotas of user types, and its optimizer steps.

Everything follows from the configuration; what a world says of its users comes as an argument.

    arms    the models that are compared
    quotas  how many users of each type a scenario has
    users   who converses for which arm
    steps   what is selected, and the optimizer steps that this makes
    check   what no run could take
"""
