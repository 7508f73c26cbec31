// Package runtime runs one process in a container described by an OCI runtime-spec configuration.
//
// It takes a specs.Spec and a path to a root file system; it knows nothing of images or of how the root came to be.
// Two steps, as the runtime specification has them: [Create] makes the namespaces and everything in them up to the
// point before exec; [Container.Start] lets the user's process begin. The user's process is PID 1 of its PID
// namespace: nothing of ours stays in the container.
//
// # Processes
//
//	caller (monitor) ──clone──▶ set-up child ──execve──▶ user's process
//	  makes the cgroup            this binary again, in the new namespaces:
//	  runs hooks                  Main recognises it and works through the list
//	  waits, signals              of steps in setup.go
//
// Both sides talk over one socket pair (protocol.go). The child's end is close-on-exec, so its closing is the news that the
// user's process runs. A child that reads end-of-file, or whose parent dies (PDEATHSIG until set-up is done), exits:
// no set-up child outlives its parent.
//
// # Guarantees
//
//   - Nothing in the root file system is trusted: every path in it is resolved below the root (root.go), symlinks and
//     ".." included, and used through the descriptor that the resolution gave.
//   - The container gets descriptors 0, 1 and 2 and no other, default signal dispositions and an empty signal mask.
//   - The container cannot write to this program's file through /proc/PID/exe (exe.go, CVE-2019-5736).
//   - What the configuration asks for and this package cannot do is an error, never silently left out; the exceptions
//     (labels of a security module that is not active, cgroups without permission and without limits) are logged.
//
// The package has no locks of its own; a Container's methods may be called concurrently.
package runtime
