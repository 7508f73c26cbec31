// Package fetchtest makes what tests fetch: layers in every format from lists of files, images of them, and a registry
// on loopback that logs what it is asked and fails as it is told. Nothing but tests imports it.
//
//	img := &fetchtest.Image{Layers: []fetchtest.Layer{
//		fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("etc/motd", "hello\n")),
//	}}
//	reg := fetchtest.NewRegistry(t)
//	ref := reg.Push(t, "app:1", img) // "127.0.0.1:39251/app:1"
//	defer reg.Use(fetchtest.OnlyBlobs(fetchtest.TruncateNext(1, 100)))()
package fetchtest
