"""A Ray cluster runs the tasks: its nodes see the folders of inputs and outputs, and each worker
reads, sums and writes there itself. Sent are the plan, once, and numbers. The only user of ray.
"""
