"""HY-WorldPlay: worlds to walk through, with cameras, actions and a memory chosen by view."""
