package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the Makefile with -ldflags -X; "" in a binary that `go build` or `go install` made.
var version string

// versionInfo is what `veneer version` tells.
type versionInfo struct {
	Version   string
	Commit    string `json:",omitempty"`
	GoVersion string
	OS        string
	Arch      string
}

func newVersionCmd(a *app) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version of veneer",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			v := currentVersion()
			switch format {
			case "":
				fmt.Fprintf(a.stdout, "veneer %s (%s, %s/%s)\n", v.Version, v.GoVersion, v.OS, v.Arch)
				return nil
			case "json":
				return json.NewEncoder(a.stdout).Encode(v)
			}
			return usageError(c, fmt.Errorf("--format %q: want json", format))
		},
	}
	c.Flags().StringVar(&format, "format", "", "json for one JSON object")
	return c
}

// currentVersion prefers what the Makefile set, then what go recorded in the binary.
func currentVersion() versionInfo {
	v := versionInfo{Version: version, GoVersion: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if b, ok := debug.ReadBuildInfo(); ok {
		if v.Version == "" && b.Main.Version != "" && b.Main.Version != "(devel)" {
			v.Version = b.Main.Version
		}
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value
			}
		}
	}
	if v.Version == "" {
		v.Version = "devel"
	}
	return v
}
