"""A process with a worker that waits for ever: python -m tests.support.lasting_worker."""

import multiprocessing
import time

from facenet_jax.runtime.parent import end_with_parent


def work(pids) -> None:
    end_with_parent()
    pids.put(multiprocessing.current_process().pid)
    time.sleep(1000)


if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    spawn.Process(target=work, args=(queue,)).start()
    print(queue.get(), flush=True)
    time.sleep(1000)
