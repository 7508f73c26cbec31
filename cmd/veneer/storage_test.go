package main

import "testing"

func TestStorageSizes(t *testing.T) {
	for s, want := range map[string]storage{
		"10G": {Bytes: 10 << 30}, "512M": {Bytes: 512 << 20}, "512m": {Bytes: 512 << 20}, "1.5g": {Bytes: 3 << 29}, "4096": {Bytes: 4096},
		"1kb": {Bytes: 1024}, "1KiB": {Bytes: 1024}, "2 MB": {Bytes: 2 << 20}, "7b": {Bytes: 7}, "1T": {Bytes: 1 << 40},
		"1G,inodes=100000": {1 << 30, 100000}, "inodes=5": {Inodes: 5},
	} {
		var got storage
		if err := got.Set(s); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", s, got, err, want)
		}
		var again storage
		if text := got.String(); got.Bytes != 0 && (again.Set(text) != nil || again != got) {
			t.Errorf("%q is shown as %q", s, text)
		}
	}
	for _, s := range []string{"", "G", "-1G", "0", "0.5", "1X", "1GX", "1GiBs", "1e3", "0x10", "inf", "NaN", "1.2.3", "9E", "8388608T", "1G,",
		"1G,2X", "inodes=", "inodes=0", "inodes=-1", "inodes=1k", "size=1G"} {
		if got := (storage{1, 1}); got.Set(s) == nil || got != (storage{1, 1}) {
			t.Errorf("%q was taken: %+v", s, got)
		}
	}
}

func FuzzStorageSize(f *testing.F) {
	for _, s := range []string{"10G", "1.5 MiB", "0", "9E", "1G,inodes=3", "٣G"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var got, again storage
		if got.Set(s) != nil {
			return
		}
		if got.Bytes < 0 || got.Inodes < 0 || got == (storage{}) {
			t.Errorf("%q became %+v", s, got)
		}
		if got.Bytes > 0 && (again.Set(got.String()) != nil || again.Inodes != got.Inodes) {
			t.Errorf("%q became %+v, and that %+v", s, got, again)
		}
	})
}
