package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckOfAContainer(t *testing.T) {
	l := newLab(t)
	image := l.image()
	l.veneer("run", "-d", "--name", "live", image, "sh", "-c", "i=0; while :; do echo $i >/f$((i % 10)); i=$((i + 1)); done")
	for range 5 {
		if r := l.veneer("check", "live"); r.code != 0 || !strings.Contains(r.stdout, "no damage") {
			t.Errorf("check of a running container: %+v", r)
		}
	}
	id := l.only()
	l.want("rm", "-f", "live")
	l.veneer("check", id).check(t, 1, "", "no such container")
}

func TestCheckAndSalvageOfADamagedContainer(t *testing.T) {
	l := newLab(t)
	image := l.image()
	l.veneer("run", "--name", "box", image, "sh", "-c", "echo one >/one; echo motd >>/etc/motd; chown 5:6 /one")
	if r := l.veneer("check", "box"); r.code != 0 || !strings.HasPrefix(r.stdout, "box: no damage: ") {
		t.Fatalf("check: %+v", r)
	}
	name := filepath.Join(l.places.file(l.only(), "delta"), "checkpoint")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1 // of the record that ends a checkpoint: all inodes are before it
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r := l.veneer("check", "box")
	if r.code != 1 || !strings.HasPrefix(r.stdout, "checkpoint at byte ") || !strings.Contains(r.stderr, "--salvage") {
		t.Errorf("check of a damaged checkpoint: %+v", r)
	}
	if r := l.veneer("diff", "box"); r.code != 1 || !strings.Contains(r.stderr, "damaged at byte") {
		t.Errorf("diff of a damaged checkpoint: %+v", r)
	}
	out := filepath.Join(l.dir, "out")
	if r := l.veneer("check", "--salvage", out, "box"); r.code != 0 || !strings.Contains(r.stdout, "2 files and ") {
		t.Errorf("salvage: %+v", r)
	}
	checkFile(t, filepath.Join(out, "one"), "one\n")
	checkFile(t, filepath.Join(out, "etc/motd"), "welcome\nmotd\n")
	l.veneer("check", "--salvage", out, "box").check(t, 1, "", "not empty")
}
